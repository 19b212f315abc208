"""Layouts are told by types and names of tensors; what does not fit together is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.weights import files
from tests.weights.files import CONFIG, Entry
from vellumd import errors
from vellumd.weights import checkpoint, shapes
from vellumd.weights.checkpoint import Checkpoint, Layout, Scaling

FP8 = "F8_E4M3"
LAYER = "transformer_blocks.0.attn.to_q"


def single(folder: Path, tensors: Mapping[str, Entry], name: str = "model") -> Checkpoint:
    """The transformer in a single file of these tensors."""
    return checkpoint.of("transformer", [files.write(folder / f"{name}.safetensors", tensors)])


def refusal(folder: Path, tensors: Mapping[str, Entry], part: str = "transformer") -> str:
    """What is said of such a file, within a second of work."""
    file = files.write(folder / "model.safetensors", tensors)
    began = time.thread_time()
    with pytest.raises(errors.ModelInvalid) as caught:
        checkpoint.of(part, [file]).check(shapes.transformer(CONFIG))
    assert time.thread_time() - began < 1
    return caught.value.message


PREFIX = "model.diffusion_model."
SENTINEL: dict[str, Entry] = {checkpoint.SENTINEL: ("F32", (0,))}


@pytest.mark.parametrize(
    ("tensors", "layout", "scaling"),
    [
        (files.transformer(prefix=PREFIX), Layout.COMFY, Scaling.NONE),
        (files.transformer("F16"), Layout.COMFY, Scaling.NONE),
        (files.transformer(FP8), Layout.COMFY_FP8, Scaling.NONE),
        (files.scaled(files.transformer(FP8), ".scale_weight"), Layout.COMFY_FP8_SCALED,
         Scaling.SCALAR),
        (files.scaled(files.transformer(FP8, PREFIX)), Layout.COMFY_FP8_SCALED, Scaling.SCALAR),
        (files.scaled(files.transformer(FP8), by="row"), Layout.LIGHTX2V_FP8, Scaling.ROW),
        (files.scaled(files.transformer(FP8), by="rows"), Layout.LIGHTX2V_FP8, Scaling.ROW),
    ],
)  # fmt: skip
def test_layouts(
    tmp_path: Path, tensors: Mapping[str, Entry], layout: Layout, scaling: Scaling
) -> None:
    """A file of any name: types and companions of its tensors say who wrote it."""
    found = single(tmp_path, tensors)
    found.check(shapes.transformer(CONFIG))
    assert (found.layout, found.weights[f"{LAYER}.weight"].scaling) == (layout, scaling)
    assert found.sentinel is False
    assert found.is_plain_fp8 == (layout is Layout.COMFY_FP8)


def test_the_sentinel(tmp_path: Path) -> None:
    """Empty or a single number, with prefix or without: it is a mark and no weight."""
    plain = files.transformer()
    for mark in (SENTINEL, {PREFIX + checkpoint.SENTINEL: ("F32", ())}):
        found = single(tmp_path, {**plain, **mark})
        assert found.sentinel
        assert found.weights.keys() == plain.keys()


def test_a_folder_of_shards(tmp_path: Path) -> None:
    """Several files make one part; bytes and values are those of all."""
    whole = files.transformer()
    names = sorted(whole)
    for number, half in enumerate((names[:9], names[9:])):
        files.write(tmp_path / f"part-{number}.safetensors", {name: whole[name] for name in half})
    found = checkpoint.folder(tmp_path, "transformer")
    found.check(shapes.transformer(CONFIG))
    assert found.layout is Layout.DIFFUSERS
    assert found.nbytes == 2 * found.count
    files.write(tmp_path / "part-2.safetensors", {names[0]: whole[names[0]]})
    with pytest.raises(errors.ModelInvalid, match="both hold"):
        checkpoint.folder(tmp_path, "transformer")


def test_the_predecessors_folder(tmp_path: Path) -> None:
    """FP8 without scales, norms and biases too, in the diffusers layout."""
    cast = {name: (FP8, shape) for name, (_, shape) in files.transformer().items()}
    files.write(tmp_path / "x.safetensors", cast)
    found = checkpoint.folder(tmp_path, "transformer")
    assert (found.layout, found.is_plain_fp8) == (Layout.PREDECESSOR_FP8, True)


def marked(settings: Mapping[str, object], stored: str = FP8) -> tuple[dict[str, Entry], bytes]:
    """A file of which one linear has a scale and ComfyUI's marker, and the marker's bytes."""
    text = json.dumps(settings).encode()
    whole = files.transformer()
    whole[f"{LAYER}.weight"] = (stored, (16, 16))
    whole[f"{LAYER}.weight_scale"] = ("F32", ())
    whole[f"{LAYER}.comfy_quant"] = ("U8", (len(text),))
    return whole, text


def test_markers(tmp_path: Path) -> None:
    """fp8mixed: the marked layer has its scale and flag, FP8 may call itself U8; others stay."""
    for stored in (FP8, "U8"):
        settings = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
        whole, text = marked(settings, stored)
        file = tmp_path / "model.safetensors"
        files.write(file, whole, contents={f"{LAYER}.comfy_quant": text})
        found = checkpoint.of("transformer", [file])
        assert found.layout is Layout.COMFY_FP8_MIXED
        weight = found.weights[f"{LAYER}.weight"]
        assert (weight.place.dtype, weight.full_precision) == (FP8, True)
        other = found.weights["transformer_blocks.1.attn.to_q.weight"]
        assert (other.scaling, other.full_precision) == (Scaling.NONE, False)


def test_a_table_of_formats(tmp_path: Path) -> None:
    """_quantization_metadata in the header stands for markers; its names have the prefix."""
    layers = {f"{PREFIX}{LAYER}": {"format": "float8_e4m3fn"}}
    whole = files.transformer(prefix=PREFIX)
    whole[f"{PREFIX}{LAYER}.weight"] = (FP8, (16, 16))
    whole[f"{PREFIX}{LAYER}.weight_scale"] = ("F32", (1,))
    table = {"_quantization_metadata": json.dumps({"layers": layers})}
    file = files.write(tmp_path / "model.safetensors", whole, table)
    assert checkpoint.of("transformer", [file]).layout is Layout.COMFY_FP8_MIXED
    files.write(file, whole, {"_quantization_metadata": "{"})
    with pytest.raises(errors.ModelInvalid, match="garbled table"):
        checkpoint.of("transformer", [file])


def test_the_former_mark_of_full_precision(tmp_path: Path) -> None:
    """scaled_fp8 with two values asks for products in 16 bits, an empty one does not."""
    whole = files.scaled(files.transformer(FP8), ".scale_weight")
    for count in (0, 2):
        found = single(tmp_path, {**whole, "scaled_fp8": (FP8, (count,))})
        assert found.weights[f"{LAYER}.weight"].full_precision == (count == 2)


def test_input_scales(tmp_path: Path) -> None:
    """They stay with their weight."""
    whole = files.scaled(files.transformer(FP8), ".scale_weight")
    whole[f"{LAYER}.scale_input"] = ("F32", ())
    weight = single(tmp_path, whole).weights[f"{LAYER}.weight"]
    assert weight.input_scale is not None and weight.input_scale.nbytes == 4


@pytest.mark.parametrize(
    ("shape", "scale", "block"),
    [
        ((300, 256), (3, 2), (128, 128)),
        ((256, 256), (4, 4), (64, 64)),
        ((300, 256), (4, 2), (75, 128)),
        ((300, 256), (7, 2), None),
        ((300, 256), (256,), None),
        ((300, 256), (2, 3, 1), None),
    ],
)
def test_blocks(
    tmp_path: Path, shape: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, int] | None
) -> None:
    """The sides of a block follow from both shapes: 128, or what divides evenly."""
    whole = files.transformer()
    whole[f"{LAYER}.weight"] = (FP8, shape)
    whole[f"{LAYER}.weight_scale"] = ("F32", scale)
    if block is None:
        assert "does not fit" in refusal(tmp_path, whole)
    else:
        weight = single(tmp_path, whole).weights[f"{LAYER}.weight"]
        assert (weight.scaling, weight.block) == (Scaling.BLOCK, block)


@pytest.mark.parametrize(
    ("name", "fused"),
    [
        ("qwen_image_edit_2511_fp8_e4m3fn_scaled_lightning_8steps_v1.0", ("lightning-8",)),
        ("Qwen-Rapid-Lightning-4steps", ("lightning-4",)),
        ("qwen_image_edit_2511_fp8_e4m3fn_scaled", ()),
    ],
)
def test_a_lora_inside(tmp_path: Path, name: str, fused: tuple[str, ...]) -> None:
    """Nothing but the name tells of it, or the metadata that vellumd itself writes."""
    rows = files.scaled(files.transformer(FP8), by="row")
    found = single(tmp_path, rows, name)
    assert found.fused == fused
    assert found.layout is (Layout.LIGHTX2V_FUSED if fused else Layout.LIGHTX2V_FP8)
    told = {checkpoint.FUSED_KEY: '["style", "lightning-8"]'}
    file = files.write(tmp_path / "x.safetensors", rows, told)
    assert checkpoint.of("transformer", [file]).fused == ("style", "lightning-8")
    files.write(file, rows, {checkpoint.FUSED_KEY: "3"})
    with pytest.raises(errors.ModelInvalid, match="garbled"):
        checkpoint.of("transformer", [file])


Change = Callable[[dict[str, Entry]], object]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("img_in.bias"), "lacks img_in.bias"),
        (lambda t: [t.pop(n) for n in list(t) if "blocks.1." in n], "and 31 more"),
        (lambda t: t.update({"img_in.weight": ("BF16", (16, 65))}), "another size: img_in.weight"),
        (lambda t: t.update({"blocks.7.weight": ("BF16", (1,))}), "does not know: blocks.7.weight"),
        (lambda t: t.update({f"{LAYER}.weight_scale": ("F32", ())}), "belong to no FP8 weight"),
        (lambda t: t.update({"gone.weight_scale": ("F32", ())}), "belong to no FP8 weight"),
        (lambda t: t.update({f"{LAYER}.input_scale": ("F32", ())}), "belong to no FP8 weight"),
        (lambda t: t.update({f"{LAYER}.weight": ("I8", (16, 16))}), "not supported (I8)"),
        (lambda t: t.update({f"{LAYER}.weight": ("U8", (16, 8))}), "not supported (U8)"),
        (lambda t: t.update({f"{LAYER}.weight_scale_2": ("F32", ())}), "(weight_scale_2)"),
        (lambda t: t.update({f"{LAYER}.lora_A.weight": ("BF16", (4, 16))}), "is a LoRA"),
        (lambda t: t.update({"vae.decoder.x": ("BF16", (1,))}), "several parts in one"),
        (lambda t: t.clear(), "holds no transformer of Qwen-Image-Edit"),
        (lambda t: (t.clear(), t.update({"double_blocks.0.img_attn.qkv.weight": ("BF16", (1,))})),
         "holds no transformer of Qwen-Image-Edit"),
        (lambda t: t.update({PREFIX + "img_in.bias": ("BF16", (16,))}), "under two names"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, change: Change, said: str) -> None:
    """Each mistake of a file has its sentence."""
    tensors = files.transformer()
    change(tensors)
    assert said in refusal(tmp_path, tensors)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(f"{LAYER}.weight_scale"), f"lacks the scale of {LAYER}.weight"),
        (lambda t: t.update({f"{LAYER}.weight_scale": ("U8", ())}), "scales of type U8"),
        (lambda t: t.update({f"{LAYER}.weight_scale": ("F32", (5,))}), "does not fit"),
    ],
)
def test_what_is_refused_of_scaled_files(tmp_path: Path, change: Change, said: str) -> None:
    """A scale that is missing, of another type or shape would give garbage, not an error."""
    tensors = files.scaled(files.transformer(FP8))
    change(tensors)
    assert said in refusal(tmp_path, tensors)


@pytest.mark.parametrize("format", ["nvfp4", "int8_tensorwise", "mxfp8", None])
def test_formats_that_cannot_be_read(tmp_path: Path, format: str | None) -> None:
    """A marker of another format is told by its name."""
    whole, text = marked({"format": format})
    file = tmp_path / "model.safetensors"
    files.write(file, whole, contents={f"{LAYER}.comfy_quant": text})
    with pytest.raises(errors.ModelInvalid, match=str(format)):
        checkpoint.of("transformer", [file])
    files.write(file, whole, contents={f"{LAYER}.comfy_quant": b"\xff"})
    with pytest.raises(errors.ModelInvalid, match="garbled marker"):
        checkpoint.of("transformer", [file])


def test_another_part(tmp_path: Path) -> None:
    """A transformer in place of a VAE is named as one."""
    assert "holds a transformer, no vae" in refusal(tmp_path, files.transformer(), "vae")


def test_the_real_size_is_known_at_once(tmp_path: Path) -> None:
    """2511's 20.43 B values in 41 GB: names, shapes and places in far less than a second."""
    whole = {name: ("BF16", shape) for name, shape in shapes.transformer({}).items()}
    file = files.write(tmp_path / "model.safetensors", whole)
    began = time.thread_time()
    found = checkpoint.of("transformer", [file])
    found.check(shapes.transformer({}))
    assert time.thread_time() - began < 1
    assert round(found.count / 1e9, 2) == 20.43
    assert round(found.nbytes / 1e9, 1) == 40.9
