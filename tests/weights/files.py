"""Weight files for tests: headers as wanted, and nothing but zeros behind them."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vellumd.weights import header, shapes
from vellumd.weights.checkpoint import SENTINEL

CONFIG: dict[str, Any] = {
    "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 24,
    "num_layers": 2, "zero_cond_t": True,
}  # fmt: skip
"""A transformer like 2511's, tiny."""

ENCODER = {
    "hidden_size": 12, "intermediate_size": 8, "num_attention_heads": 3,
    "num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": 20,
    "vision_config": {"depth": 1, "hidden_size": 8, "intermediate_size": 6, "out_hidden_size": 12},
}  # fmt: skip
"""A text encoder's configuration, of the older form."""

Entry = tuple[str, Iterable[int]]


def packed(tensors: Mapping[str, Entry], metadata: Mapping[str, str] | None = None) -> bytes:
    """Length and JSON of a header that gives each name its type and shape, in that order."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = header.SIZES.get(dtype, 1)
        for side in shape:
            size *= side
        entries[name] = {
            "dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size],
        }  # fmt: skip
        end += size
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def write(
    file: Path,
    tensors: Mapping[str, Entry],
    metadata: Mapping[str, str] | None = None,
    contents: Mapping[str, bytes] | None = None,
) -> Path:
    """A whole file of zeros, but for `contents`; it takes no room on the disk."""
    head = packed(tensors, metadata)
    offsets = json.loads(head[8:])
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as opened:
        opened.write(head)
        size = max((offsets[name]["data_offsets"][1] for name in tensors), default=0)
        opened.truncate(len(head) + size)
        for name, data in (contents or {}).items():
            opened.seek(len(head) + offsets[name]["data_offsets"][0])
            opened.write(data)
    return file


def transformer(dtype: str = "BF16", prefix: str = "", **config: Any) -> dict[str, Entry]:
    """What a whole transformer holds: matrices of the blocks as `dtype`, the rest bfloat16."""
    return {
        prefix + name: (dtype if _is_linear(name, shape) else "BF16", shape)
        for name, shape in shapes.transformer({**CONFIG, **config}).items()
    }


def scaled(
    found: Mapping[str, Entry], ending: str = ".weight_scale", by: str = "scalar"
) -> dict[str, Entry]:
    """`found` with a scale to each FP8 matrix."""
    made = dict(found)
    for name, (dtype, shape) in found.items():
        if dtype == "F8_E4M3":
            rows, columns = shape
            sides = {
                "scalar": (), "row": (rows, 1), "rows": (rows,),
                "block": (-(-rows // 128), -(-columns // 128)),
            }[by]  # fmt: skip
            made[name.removesuffix(".weight") + ending] = ("F32", sides)
    return made


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name.startswith("transformer_blocks.")


def model_folder(home: Path) -> Path:
    """A whole model in the diffusers layout, tiny."""
    write(home / "transformer/model.safetensors", transformer())
    encoder = {name: ("BF16", shape) for name, shape in shapes.text_encoder(ENCODER).items()}
    write(home / "text_encoder/model.safetensors", encoder)
    write(home / "vae/model.safetensors", {"decoder.conv_in.weight": ("BF16", (4, 4))})
    scheduler = {"base_shift": 0.5, "max_shift": 0.9, "shift_terminal": 0.02}
    for name, content in (
        ("model_index.json", {}), ("transformer/config.json", CONFIG),
        ("text_encoder/config.json", ENCODER), ("vae/config.json", {}),
        ("processor/x.json", {}), ("scheduler/scheduler_config.json", scheduler),
    ):  # fmt: skip
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text(json.dumps(content))
    return home


def configured(folder: Path, **changed: object) -> None:
    """Change keys of the transformer's config.json; None removes one."""
    config = {**CONFIG, **changed}
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "transformer/config.json").write_text(json.dumps(kept))


def sentinel(file: Path) -> None:
    """Put ComfyUI's mark into a transformer."""
    write(file, {**transformer(), SENTINEL: ("F32", ())})


def single(folder: Path, *, parts: bool = True) -> Path:
    """ComfyUI's folders beside `folder`, which then is the base and has no weights of its own."""
    models = folder.parent / "ComfyUI/models"
    names = {"transformer": "diffusion_models/edit.safetensors"}
    if parts:
        names |= {"text_encoder": "clip/qwen.safetensors", "vae": "vae/qwen.safetensors"}
    for part in ("transformer", "text_encoder", "vae"):
        if part in names:
            (models / names[part]).parent.mkdir(parents=True)
            shutil.move(folder / part / "model.safetensors", models / names[part])
    return models / names["transformer"]
