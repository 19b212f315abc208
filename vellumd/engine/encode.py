"""Prompt and pictures to the embeddings that guide the transformer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vellumd.images import reference_size

TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, "
    "texture, objects, background), then explain how the user's text instruction should alter "
    "or modify the image. Generate a new image that meets the user's requirements while "
    "maintaining consistency with the original input where appropriate.<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""What Qwen-Image-Edit was trained with; diffusers' QwenImageEditPlusPipeline has the same."""

PREFIX_TOKENS = 64
"""Tokens of the template before the user's part; the transformer never sees them."""

PICTURE = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"


RATIO_MAX = 100
"""Beyond it a picture's copy is stretched: the vision tower refuses more than 200 to 1."""


def view_size(width: int, height: int, area: int) -> tuple[int, int]:
    """Width and height of the copy of a picture that the vision tower looks at."""
    width, height = min(width, RATIO_MAX * height), min(height, RATIO_MAX * width)
    return reference_size(width, height, area)


class Encoder:
    """Qwen2.5-VL as Qwen-Image-Edit uses it: its last hidden state, template cut off."""

    def __init__(self, processor: Any, model: Any, area: int, limit: int) -> None:
        """`area`: pixels of each picture's copy for the vision tower; `limit`: text tokens."""
        self._processor = processor
        self._model = model
        self._area = area
        self._limit = limit
        special = processor.tokenizer.get_added_vocab()
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len)[::-1])))

    def readable(self, prompt: str) -> tuple[str, bool]:
        """The part of `prompt` that is read, and whether something was cut off.

        Special tokens written by a user are broken up: an `<|image_pad|>` more than
        there are pictures would end the edit.
        """
        prompt = self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", prompt)
        starts = self._processor.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
        if len(starts) <= self._limit:
            return prompt, False
        return prompt[: starts[self._limit][0]], True

    def views(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """The small stretched copies of `pictures` that the vision tower looks at."""
        return [
            picture.resize(view_size(*picture.size, self._area), Image.Resampling.LANCZOS)
            for picture in pictures
        ]

    @torch.inference_mode()
    def __call__(self, prompt: str, views: list[Image.Image], device: torch.device) -> Tensor:
        """The embeddings of `prompt` with `views`: [1, tokens, channels]."""
        numbered = "".join(PICTURE.format(number) for number in range(1, len(views) + 1))
        inputs = self._processor(
            text=[TEMPLATE.format(numbered + prompt)],
            images=views,
            padding=True,
            return_tensors="pt",
        ).to(device)
        # mm_token_type_ids gives picture tokens their rows and columns; without them
        # transformers 5 counts positions one by one and the embeddings change silently
        # (huggingface/diffusers#14194).
        output = self._model.model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            pixel_values=inputs["pixel_values"],
            image_grid_thw=inputs["image_grid_thw"],
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden[:, PREFIX_TOKENS:]
