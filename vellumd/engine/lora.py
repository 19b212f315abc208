"""LoRAs: low-rank branches beside the transformer's linears, switched per edit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vellumd import errors, model_card
from vellumd.engine import linears, precision
from vellumd.models import LoraRef

log = logging.getLogger(__name__)

DOWN = (".lora_A.weight", ".lora_down.weight")
UP = (".lora_B.weight", ".lora_up.weight")
ALPHA = ".alpha"
PREFIXES = ("transformer.", "diffusion_model.", "model.diffusion_model.")


class Pair(NamedTuple):
    """What a LoRA adds to one linear: `scale` · up [out, rank] · down [rank, in]."""

    down: Tensor
    up: Tensor
    scale: float


class Branched(torch.nn.Module):
    """A linear, whatever holds its weights, with a low-rank branch beside it."""

    down: Tensor
    up: Tensor

    def __init__(self, base: torch.nn.Module, pairs: Sequence[Pair]) -> None:
        """Several pairs make one branch, of all their ranks. They are in the branch's type."""
        super().__init__()
        self.base = base
        down = torch.cat([pair.down for pair in pairs])
        up = torch.cat([(pair.up.float() * pair.scale).to(pair.up.dtype) for pair in pairs], dim=1)
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("up", up, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., in] to [..., out]."""
        y: Tensor = self.base(x)
        return y + F.linear(F.linear(x, self.down), self.up)


class Loras:
    """The LoRAs of one loaded transformer.

    The base weights are never touched, so switching off is exact, and it does not matter
    how they are held. The tensors of the last edit stay loaded; others are dropped when a
    new LoRA comes, so memory stays bounded.
    """

    def __init__(
        self,
        transformer: Any,
        folder: Path,
        card: model_card.ModelCard,
        configured: dict[str, str],
    ) -> None:
        self._transformer = transformer
        self._folder = folder
        self._card = card
        self._configured = configured
        self._loaded: dict[str, dict[str, Pair]] = {}
        self._branched: dict[str, Branched] = {}

    def names(self) -> tuple[str, ...]:
        """Roles and files that an edit can name here."""
        roles = {*self._card.loras, *self._configured}
        files = {file.stem for file in (self._folder / "loras").glob("*.safetensors")}
        return tuple(sorted(name for name in roles | files if self._file(name)))

    def _file(self, name: str) -> Path | None:
        found = model_card.find_lora(self._folder, self._card, self._configured, name)
        return found if found is not None and found.is_file() else None

    def use(self, wanted: Sequence[LoraRef]) -> None:
        """Make exactly `wanted` take part in the next forwards, at their scales.

        Raises `UnknownLora` for a name without a file, `ModelInvalid` for a file that
        is damaged or made for another model; then none takes part.
        """
        self._detach()
        files = {ref.name: self._file(ref.name) for ref in wanted}
        for name, file in files.items():
            if file is None:
                raise errors.UnknownLora(f"There is no LoRA {name!r}.")
            if name not in self._loaded:
                for gone in set(self._loaded) - set(files):
                    del self._loaded[gone]
                self._loaded[name] = self._load(name, file)
        self._attach(wanted)

    def _load(self, name: str, file: Path) -> dict[str, Pair]:
        """The pairs of `file` where the transformer is, in its type."""
        pairs = read(name, file)
        check(name, pairs, linears_of(self._transformer))
        like = self._transformer.img_in.weight
        return {
            module: Pair(pair.down.to(like), pair.up.to(like), pair.scale)
            for module, pair in pairs.items()
        }

    def _attach(self, wanted: Sequence[LoraRef]) -> None:
        of_module: dict[str, list[Pair]] = {}
        for ref in wanted:
            for module, pair in self._loaded[ref.name].items():
                scaled = pair._replace(scale=pair.scale * ref.scale)
                of_module.setdefault(module, []).append(scaled)
        for module, pairs in of_module.items():
            branched = Branched(self._transformer.get_submodule(module), pairs)
            precision.put(self._transformer, module, branched)
            self._branched[module] = branched

    def _detach(self) -> None:
        while self._branched:
            module, branched = self._branched.popitem()
            precision.put(self._transformer, module, branched.base)


def read(name: str, file: Path) -> dict[str, Pair]:
    """The pairs of the LoRA in `file` by the transformer's module, on the CPU.

    The dialects of diffusers and peft, Comfy and LightX2V; a module's `alpha` over the
    rank gives its scale. Raises `ModelInvalid`, naming the LoRA, for a file that is
    damaged or no LoRA.
    """
    damaged = errors.ModelInvalid(f"The LoRA {name!r} is damaged or made for another model.")
    if file.suffix != ".safetensors":
        raise errors.ModelInvalid(f"The LoRA {name!r} is not a .safetensors file.")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError):
        log.warning("LoRA %s cannot be read", name, exc_info=True)
        raise damaged from None
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, part = _split(key)
        parts.setdefault(module, {})[part] = tensor
    if not parts or any(not {"down", "up"} <= set(found) <= {"down", "up", "alpha"}
                        for found in parts.values()):  # fmt: skip
        raise damaged
    return {
        module: Pair(found["down"], found["up"], _scale(found)) for module, found in parts.items()
    }


def _split(key: str) -> tuple[str, str]:
    """Module and part (`down`, `up`, `alpha`) that a file's `key` names."""
    for prefix in sorted(PREFIXES, key=len, reverse=True):
        key = key.removeprefix(prefix)
    key = key.replace(".default.weight", ".weight")
    for endings, part in ((DOWN, "down"), (UP, "up"), ((ALPHA,), "alpha")):
        for ending in endings:
            if key.endswith(ending):
                return key.removesuffix(ending), part
    return key, "unknown"


def _scale(found: Mapping[str, Tensor]) -> float:
    alpha = found.get("alpha")
    return 1.0 if alpha is None else float(alpha) / len(found["down"])


def linears_of(transformer: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each linear of `transformer`, by name."""
    return {
        name: (module.out_features, module.in_features)
        for name, module in transformer.named_modules()
        if isinstance(module, (torch.nn.Linear, linears.Fp8Linear))
    }


def check(name: str, pairs: Mapping[str, Pair], sizes: Mapping[str, tuple[int, int]]) -> None:
    """Raise `ModelInvalid`, naming the LoRA, for a pair that fits no linear."""
    for module, pair in pairs.items():
        rank = len(pair.down)
        outputs, inputs = sizes.get(module, (-1, -1))
        if pair.down.shape != (rank, inputs) or pair.up.shape != (outputs, rank):
            log.warning("LoRA %s: no linear for %s", name, module)
            raise errors.ModelInvalid(f"The LoRA {name!r} is damaged or made for another model.")


def fused(weight: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """`weight` [out, in] with the pairs added, in float32: before it is rounded, never after.

    Added to weights that are FP8 already, a LoRA would be lost: 71 % of weights do not move
    for a change of 5 % of their size.
    """
    whole = weight.float()
    for pair in pairs:
        whole = whole.addmm(pair.up.float(), pair.down.float(), alpha=pair.scale)
    return whole
