"""FP8 that keeps its quality: linears, recipes, what a card lacks."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine import numerics
from vellumd import errors
from vellumd.engine import linears, loading, precision
from vellumd.engine.model import Model
from vellumd.engine.reading import StoredTensor
from vellumd.settings import EngineSettings
from vellumd.weights.checkpoint import Scaling, Weight
from vellumd.weights.header import Place

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = 1 / 16
KINDS = [linears.WeightOnly, linears.RowGemm, linears.TensorGemm]
NUMBERS = torch.Generator().manual_seed(1)


def gaussian(*shape: int, size: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=NUMBERS) * size


def small(kind: type[linears.Fp8Linear], weight: Tensor, bias: Tensor) -> linears.Fp8Linear:
    linear = kind(weight.shape[1], weight.shape[0], bias=torch.float32, device="cpu")
    precision.fill(linear, weight, bias)
    return linear


# the numbers of one linear


def test_rows_are_rounded_to_what_e4m3_has() -> None:
    """Scales are powers of two that leave no number above 448 and use the largest binade."""
    weight = gaussian(64, 96) * torch.logspace(-9, 4, 64)[:, None]
    weight[3] = 0
    weight[5] *= 448 / weight[5].abs().max()  # the edge: exactly the largest number
    rounded, scale = linears.by_row(weight)
    largest = rounded.float().abs().amax(dim=1)
    assert torch.equal(scale.log2(), scale.log2().round())
    assert float(scale[5]) == 1
    rest = torch.arange(64) != 3
    assert ((largest > 216) & (largest <= 448))[rest].all()
    assert numerics.distance(linears.whole(rounded, scale, torch.float32), weight) < 0.03
    assert not linears.whole(rounded, scale, torch.float32)[3].any()


def test_whole_weights_are_exact_in_bfloat16() -> None:
    """What the rounding made is not rounded again; a foreign scale is, once."""
    rounded, scale = linears.by_row(gaussian(8, 32))
    exact = rounded.double() * scale.double()
    assert torch.equal(linears.whole(rounded, scale, torch.bfloat16).double(), exact)
    foreign = scale * 1.2345
    once = (rounded.float() * foreign).bfloat16()
    assert torch.equal(linears.whole(rounded, foreign, torch.bfloat16), once)


@pytest.mark.parametrize("shape", [(5, 96), (1, 5, 96), (2, 3, 96)])
@pytest.mark.parametrize("kind", KINDS)
def test_each_way_multiplies_the_rounded_numbers(
    kind: type[linears.Fp8Linear], shape: tuple[int, ...]
) -> None:
    """The GEMM gives what the numbers that were rounded give, whatever leads the shape."""
    weight, bias, x = gaussian(48, 96, size=0.02), gaussian(48), gaussian(*shape)
    linear = small(kind, weight, bias)
    whole = linears.whole(linear.weight, linear.scale, torch.float32)
    if kind is not linears.WeightOnly:
        rounded, scale = linears.by_token(x.flatten(end_dim=-2))
        x = (rounded.float() * scale).reshape(shape)
    expected = torch.nn.functional.linear(x, whole, bias)
    assert torch.allclose(linear(x), expected, atol=1e-5)


def test_a_linear_without_bias() -> None:
    """Qwen2.5-VL has some."""
    weight, x = gaussian(48, 96), gaussian(7, 96)
    for kind in KINDS:
        linear = kind(96, 48, bias=None, device="cpu")
        precision.fill(linear, weight)
        assert numerics.distance(linear(x), x @ weight.t()) < precision.TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_rescaling_changes_nothing(kind: type[linears.Fp8Linear]) -> None:
    """Weights a sixteenth as large give a sixteenth, to the bit; a bare cast loses them."""
    weight, bias, x = gaussian(64, 128, size=0.02), torch.zeros(64), gaussian(9, 128)
    natural, tiny = small(kind, weight, bias)(x), small(kind, weight * SMALL, bias)(x)
    assert torch.equal(natural * SMALL, tiny)
    exact = x @ weight.t()
    assert numerics.distance(natural, exact) < precision.TOLERANCE
    plain = torch.nn.Linear(128, 64)
    plain.weight.data = weight * SMALL
    plain.bias.data.zero_()
    assert numerics.distance(numerics.cast(plain)(x) / SMALL, exact) > 0.1


def test_row_and_tensor_gemm_agree() -> None:
    """Scales in the GEMM or after it: one rounding apart."""
    weight, bias, x = gaussian(64, 128), gaussian(64), gaussian(9, 128)
    rows, tensor = (small(kind, weight, bias) for kind in KINDS[1:])
    assert numerics.distance(tensor(x), rows(x)) < 1e-5
    assert numerics.distance(tensor(x.bfloat16()), rows(x.bfloat16())) < 2**-7


# blocks and the whole


@pytest.fixture(scope="module")
def feed(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the demo's transformer is fed at the first step of an edit."""
    from tests.engine.support import PICTURES, Told, reference, resolved
    from vellumd.engine.run import Run
    from vellumd.images import Canvas

    inputs = [reference(data) for data in PICTURES]
    files = [tmp_path_factory.mktemp("inputs") / "input.png" for _ in inputs]
    for file, data in zip(files, PICTURES, strict=True):
        file.write_bytes(data)
    run = Run(model, resolved(inputs), Told(), lambda: False)
    given = run.encode(files, Canvas.plan("64x64", [(80, 60)] * 2, 4096))
    tokens = torch.randn(1, given.shapes[0][1] * given.shapes[0][2], 64, generator=NUMBERS)
    return {
        "hidden_states": torch.cat([tokens, given.references], dim=1),
        "timestep": torch.tensor([0.75]),
        "encoder_hidden_states": given.prompt,
        "img_shapes": [given.shapes],
    }


def test_each_block_keeps_its_quality(model: Model, feed: dict[str, Any]) -> None:
    """Row scales halve the error of a bare cast where weights are small, and do not care."""
    transformer = model.parts.transformer
    natural, tiny = (
        numerics.by_block(transformer, feed, numerics.VARIANTS, small=small)
        for small in (False, True)
    )
    assert all(len(found) == len(transformer.transformer_blocks) for found in natural.values())
    print({name: [f"{error:.4f}" for error in found] for name, found in tiny.items()})
    for name in ("fp8-weights", "fp8-weights, all"):
        cast = "plain cast, keep-list" if name == "fp8-weights" else "plain cast"
        for scaled, bare in zip(tiny[name], tiny[cast], strict=True):
            assert scaled <= 0.5 * bare
    for name in ("fp8-weights", "fp8-rows", "fp8-tensor"):
        assert tiny[name] == pytest.approx(natural[name], rel=0.1)
        assert max(tiny[name]) <= 0.06  # twelve linears, one after the other
    for kept, everything in (("fp8-weights", "fp8-weights, all"), ("fp8-rows", "fp8-rows, all")):
        assert sum(natural[kept]) < sum(natural[everything])


def test_the_whole_keeps_its_quality(model: Model, feed: dict[str, Any]) -> None:
    """The same at the end of all blocks."""
    natural, tiny = (
        numerics.whole(model.parts.transformer, feed, numerics.VARIANTS, small=small)
        for small in (False, True)
    )
    print({name: f"{error:.4f}" for name, error in tiny.items()})
    assert tiny["fp8-weights"] <= 0.5 * tiny["plain cast, keep-list"]
    assert tiny["fp8-weights, all"] <= 0.5 * tiny["plain cast"]
    for name in ("fp8-weights", "fp8-rows", "fp8-tensor"):
        # 16 tokens, each rounding's effect on the next: chance alone moves it by a fifth.
        assert tiny[name] == pytest.approx(natural[name], rel=0.35)


# which recipe runs


def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., precision.Choice]:
    """`choose` for a card whose work this machine's CPU does."""
    monkeypatch.setattr(precision, "tried", lambda kind, _: trial(kind, CPU))
    monkeypatch.setattr(precision, "without_triton", lambda _: None)
    return lambda **settings: precision.choose(EngineSettings(**settings), CUDA)


trial = precision.tried


def test_the_best_that_runs_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all a card can have: FP8 by rows. In the reference tier: none of it."""
    choose = on_gpu(monkeypatch)
    assert choose() == precision.Choice(precision.ROWS, {})
    assert choose(tier="reference").recipe is precision.PLAIN
    assert choose(tier="turbo").recipe is precision.ROWS
    assert precision.choose(EngineSettings(), CPU).recipe is precision.PLAIN


def refuse_rows(*args: Any, **kwargs: Any) -> Tensor:
    """As torch 2.10 with CUDA 13 does on an RTX 5090 (pytorch/pytorch#192707)."""
    if kwargs["scale_a"].numel() > 1:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED")
    return scaled_mm(*args, **kwargs)


def wrong_rows(*args: Any, **kwargs: Any) -> Tensor:
    """A GEMM that runs, and takes one scale for all rows."""
    if kwargs["scale_a"].numel() > 1:
        kwargs["scale_a"] = kwargs["scale_a"].mean().expand_as(kwargs["scale_a"]).contiguous()
    return scaled_mm(*args, **kwargs)


def refuse_all(*args: Any, **kwargs: Any) -> Tensor:
    """As an RTX 3090 does."""
    raise RuntimeError("torch._scaled_mm is only supported on CUDA devices with sm >= 8.9")


def not_a_number(*args: Any, **kwargs: Any) -> Tensor:
    return scaled_mm(*args, **kwargs) * float("nan")


scaled_mm = torch._scaled_mm


@pytest.mark.parametrize(
    ("gemm", "name", "refused"),
    [
        (refuse_rows, "fp8-tensor", ["fp8-rows"]),
        (wrong_rows, "fp8-tensor", ["fp8-rows"]),
        (refuse_all, "fp8-weights", ["fp8-rows", "fp8-tensor"]),
        (not_a_number, "fp8-weights", ["fp8-rows", "fp8-tensor"]),
    ],
)
def test_what_a_cards_gemm_lacks(
    monkeypatch: pytest.MonkeyPatch, gemm: Any, name: str, refused: list[str]
) -> None:
    """A recipe that fails, or gives wrong numbers, makes room for the next; it says why."""
    choose = on_gpu(monkeypatch)
    monkeypatch.setattr(torch, "_scaled_mm", gemm)
    choice = choose()
    assert choice.recipe.name == name
    assert list(choice.refused) == refused
    assert all(choice.refused.values())
    with pytest.raises(errors.RecipeUnsupported):
        choose(recipe="fp8-rows")


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """FP8 GEMMs do not pay unless fused, so weights alone are FP8; one may be forced."""
    choose, probe = on_gpu(monkeypatch), without_triton
    imported = builtins.__import__

    def no_triton(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "triton" or "triton_probe" in (args[2] or ()):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(precision, "without_triton", probe)
    monkeypatch.setattr(builtins, "__import__", no_triton)
    choice = choose()
    assert choice.recipe is precision.WEIGHTS
    assert "Triton" in choice.refused["fp8-rows"]
    assert choose(recipe="fp8-rows").recipe is precision.ROWS


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"forward": "stock"}, "fp8-weights"),
        ({"kernels": "plain"}, "fp8-weights"),
        ({"kernels": "plain", "compile": True}, "fp8-rows"),
    ],
)
def test_a_forward_that_fuses_nothing(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], name: str
) -> None:
    """Is as if Triton did not run; what torch compiles fuses too."""
    assert on_gpu(monkeypatch)(**settings).recipe.name == name


without_triton = precision.without_triton


def test_triton_without_a_card() -> None:
    """Installed or not, Triton runs nothing on a CPU, and the probe says so."""
    assert "Triton" in str(precision.without_triton(CPU))


def test_a_lost_card_is_no_missing_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """After it nothing runs, so the error goes up."""

    def lost(*args: Any, **kwargs: Any) -> Tensor:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    choose = on_gpu(monkeypatch)
    monkeypatch.setattr(torch, "_scaled_mm", lost)
    with pytest.raises(torch.AcceleratorError):
        choose()


# in a transformer


def test_the_keep_list(model: Model) -> None:
    """Twelve linears of each block are small, and nothing else; the hatch keeps more."""
    transformer = model.parts.transformer
    names = [name for name, _ in precision.small_linears(transformer)]
    assert len(names) == 12 * len(transformer.transformer_blocks)
    assert not [name for name in names if "mod" in name or "norm" in name]
    fewer = [name for name, _ in precision.small_linears(transformer, ["img_mlp.net.2"])]
    assert {name.partition(".")[2].partition(".")[2] for name in set(names) - set(fewer)} == {
        "img_mlp.net.2"
    }


def loading_folder() -> Any:
    from vellumd import model_card

    return model_card.DEMO_FOLDER


def test_loading_rounds_as_it_goes(model: Model) -> None:
    """Loaded by a recipe, blocks are FP8 and the rest is what it was."""
    parts = loading.load(loading_folder(), CPU, lambda *_: None, precision.ROWS, ["to_q"])
    kinds = {name: type(module) for name, module in parts.transformer.named_modules()}
    assert kinds["transformer_blocks.0.attn.to_k"] is linears.RowGemm
    assert kinds["transformer_blocks.0.attn.to_q"] is torch.nn.Linear
    assert kinds["transformer_blocks.0.img_mod.1"] is torch.nn.Linear
    whole, small = model.parts.transformer.state_dict(), parts.transformer.state_dict()
    for name, tensor in small.items():
        if name.endswith(".scale"):
            continue
        if tensor.dtype is linears.FP8:
            scale = small[f"{name.removesuffix('weight')}scale"]
            assert (
                numerics.distance(linears.whole(tensor, scale, torch.float32), whole[name]) < 0.03
            )
        else:
            assert torch.equal(tensor, whole[name])


def test_fp8_in_the_file_is_final() -> None:
    """Its numbers are kept to the bit, times their scale or 1; nothing is rounded twice."""
    block = torch.nn.Module()
    block.transformer_blocks = torch.nn.ModuleList([torch.nn.ModuleDict(
        {name: torch.nn.Linear(32, 16) for name in ("row", "scalar", "none", "block")}
    )])  # fmt: skip
    fit = precision.fitting(block, precision.WEIGHTS, torch.float32)
    weight = gaussian(16, 32).to(linears.FP8)
    scales = {
        "row": torch.rand(16) + 0.5, "scalar": torch.tensor([0.75]), "none": None,
        "block": torch.rand(2, 2) + 0.5,
    }  # fmt: skip
    for name, scale in scales.items():
        fitted = fit(stored(f"transformer_blocks.0.{name}.weight", weight, scale))
        block.load_state_dict(fitted, strict=False, assign=True)
    row, scalar, none, by_block = block.transformer_blocks[0].values()
    for linear in (row, scalar, none):
        assert torch.equal(linear.weight.float(), weight.float())
    assert torch.equal(row.scale[:, 0], scales["row"])
    assert torch.equal(scalar.scale, torch.full((16, 1), 0.75))
    assert torch.equal(none.scale, torch.ones(16, 1))
    spread = scales["block"].repeat_interleave(8, 0).repeat_interleave(16, 1)
    exact = weight.float() * spread
    found = linears.whole(by_block.weight, by_block.scale, torch.float32)
    assert numerics.distance(found, exact) < 0.04


def stored(name: str, weight: Tensor, scale: Tensor | None) -> StoredTensor:
    """A weight as the reader gives it."""
    shapes = {1: Scaling.SCALAR, 16: Scaling.ROW, 4: Scaling.BLOCK}
    scaling = Scaling.NONE if scale is None else shapes[scale.numel()]
    place = Place(Path("f"), 0, "F8_E4M3", tuple(weight.shape))
    block = (8, 16) if scaling is Scaling.BLOCK else None
    return StoredTensor(Weight(name, place, scaling=scaling, block=block), weight, scale)


def test_layers_that_ask_for_16_bits_get_them() -> None:
    """ComfyUI marks them; they are held as FP8 and multiplied in the activations' type."""
    block = torch.nn.Module()
    block.transformer_blocks = torch.nn.ModuleList([torch.nn.ModuleDict(
        {name: torch.nn.Linear(32, 16) for name in ("plain", "marked")}
    )])  # fmt: skip
    fit = precision.fitting(block, precision.ROWS, torch.float32)
    weight, one = gaussian(16, 32).to(linears.FP8), torch.ones(1)
    for name in ("plain", "marked"):
        given = stored(f"transformer_blocks.0.{name}.weight", weight, one)
        marked = replace(given.stored, full_precision=name == "marked")
        block.load_state_dict(fit(replace(given, stored=marked)), strict=False, assign=True)
    plain, marked = block.transformer_blocks[0].values()
    assert type(plain) is linears.RowGemm and type(marked) is linears.WeightOnly
    marked.bias.data.fill_(0.5)
    x = gaussian(3, 32)
    assert torch.allclose(marked(x), x @ weight.float().t() + 0.5, atol=1e-5)


def test_scales_are_powers_of_two() -> None:
    """So scale times weight is exact in bfloat16, and rescaled rows are rounded as before."""
    _, scale = linears.by_row(torch.randn(64, 32, generator=torch.Generator().manual_seed(3)))
    assert (torch.frexp(scale).mantissa == 0.5).all()


def test_a_product_that_is_a_little_off_is_refused() -> None:
    """Not an error, not nonsense: 5 % beyond what rounding takes."""

    class Off(linears.WeightOnly):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 1.05

    assert "its error is 0.05" in (precision.complaint(precision.Recipe("off", Off), CPU) or "")
    assert precision.complaint(precision.WEIGHTS, CPU) is None
