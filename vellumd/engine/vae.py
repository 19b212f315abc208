"""The VAE for single pictures: a video model without time.

AutoencoderKLQwenImage convolves over frames with zeros before the first one. Of a single
frame only a kernel's last temporal tap meets pixels, so a 2-D convolution with that tap
gives the same picture, in less time and with a third of the weights.
"""

# diffusers annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    QwenImageCausalConv3d,
    QwenImageResample,
)
from torch import Tensor


class FrameConv(torch.nn.Conv2d):
    """A 2-D convolution of the one frame of [batch, channels, 1, height, width]."""

    @classmethod
    def of(cls, conv: Any) -> FrameConv:
        """The last temporal tap of a causal 3-D `conv`, on its device, as its type."""
        _, *kernel = conv.kernel_size
        _, *stride = conv.stride
        # The causal convolution pads by itself: _padding is left, right, top, bottom, time.
        left, _, top, *_ = conv._padding
        frame = cls(
            conv.in_channels, conv.out_channels, tuple(kernel), tuple(stride), (top, left),
            device="meta",
        )  # fmt: skip
        tap = conv.weight.detach()[:, :, -1].clone()
        frame.weight = torch.nn.Parameter(tap, requires_grad=conv.weight.requires_grad)
        frame.bias = conv.bias
        return frame

    def forward(self, pixels: Tensor) -> Tensor:
        """Convolve; more than one frame is a `RuntimeError`."""
        return super().forward(pixels.squeeze(2)).unsqueeze(2)


def flatten(vae: Any) -> Any:
    """Make an AutoencoderKLQwenImage two-dimensional, in place; with weights or on meta.

    Parameters keep their names, kernels [out, in, time, height, width] lose the time, and
    the `time_conv` layers, which no first frame runs through, are gone. Inputs and outputs
    keep their frame axis of length 1.
    """
    for module in list(vae.modules()):
        if isinstance(module, QwenImageResample) and hasattr(module, "time_conv"):
            del module.time_conv
        for name, child in module.named_children():
            if isinstance(child, QwenImageCausalConv3d):
                setattr(module, name, FrameConv.of(child))
    vae.clear_cache = functools.partial(_clear_cache, vae)
    return vae


def _clear_cache(vae: Any) -> None:
    """Stands in for the VAE's own: lists for features of earlier frames, one a 3-D convolution.

    Without lists diffusers keeps none, and gigabytes of a large picture's features with them.
    """
    vae._feat_map = vae._enc_feat_map = None


def last_taps(vae: Any) -> Callable[[str, Tensor], Tensor | None]:
    """What a file's tensor, given by name, becomes in `vae` once that is flat.

    To be asked for before. Of tensors shaped as in diffusers' model, kernels give their
    last tap, and `time_conv` nothing; all others, as of a file that is flat already,
    stay as they are.
    """
    stock = {name: parameter.shape for name, parameter in vae.named_parameters()}

    def adapt(name: str, tensor: Tensor) -> Tensor | None:
        if tensor.shape != stock.get(name):
            return tensor
        if ".time_conv." in name:
            return None
        return tensor[:, :, -1].contiguous() if tensor.dim() == 5 else tensor

    return adapt
