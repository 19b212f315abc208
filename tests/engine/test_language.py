"""The language model's own forward: the bits of transformers' layers, one by one and in all."""

# transformers annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as stock

from vellumd.engine.language import Kept, Layer, Sight, Text, read
from vellumd.engine.qwen_vl import fuse_norms

TYPES = [torch.float32, torch.bfloat16]
HEADS = {"two share keys": (4, 2), "all share keys": (6, 1), "none does": (2, 2)}
BEGIN = 70
LENGTHS = [9, 31, 2]


def language(dtype: torch.dtype, heads: int = 4, shared: int = 2, layers: int = 3) -> Any:
    """A narrow Qwen2.5-VL text model."""
    config = Qwen2_5_VLTextConfig(
        vocab_size=8, hidden_size=16 * heads, intermediate_size=96, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=shared,
        bos_token_id=0, eos_token_id=0,
        rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6},
    )  # fmt: skip
    torch.manual_seed(1)
    model = stock.Qwen2_5_VLTextModel(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model.to(dtype)


def texts(model: Any) -> list[Text]:
    """One that begins, and some that go on from it."""
    random = torch.Generator().manual_seed(2)
    width, dtype = model.config.hidden_size, model.dtype
    begin = Text(
        torch.randn(1, BEGIN, width, generator=random).to(dtype),
        torch.randint(0, 50, (3, 1, BEGIN), generator=random),
    )
    after = [
        Text(
            torch.randn(1, tokens, width, generator=random).to(dtype),
            torch.arange(50, 50 + tokens).expand(3, 1, -1),
            begin.kept,
        )
        for tokens in LENGTHS
    ]
    return [begin, *after]


class Stock:
    """Transformers' layers, which keep keys and values for what goes on from them."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._kept = DynamicCache()
        parameters = inspect.signature(type(model.layers[0]).forward).parameters
        self._cache = "cache" if "cache" in parameters else "past_key_values"  # before 5.24

    def layer(self, number: int, text: Text) -> Tensor:
        """What the layer makes of `text`; one that begins has to come before the others."""
        kept, seen = self._kept, None
        if text.after is not None:
            kept = copy.deepcopy(kept)
            tokens = text.hidden.shape[1]
            seen = torch.ones(1, 1, tokens, BEGIN + tokens, dtype=torch.bool).tril(BEGIN)
        made: Tensor = self._model.layers[number](
            text.hidden, attention_mask=seen, use_cache=True, **{self._cache: kept},
            position_embeddings=self._model.rotary_emb(text.hidden, text.positions),
        )  # fmt: skip
        return made


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@torch.inference_mode()
def test_each_layer_of_transformers(heads: tuple[int, int], dtype: torch.dtype) -> None:
    """To the bit, for a text that begins and for those after it."""
    model = language(dtype, *heads)
    layers, given = Stock(model), texts(model)
    for number, layer in enumerate(model.layers):
        for text in given:
            expected = layers.layer(number, text)
            Layer.of(layer).read(text, Sight.of(text, model.rotary_emb), number)
            assert torch.equal(text.hidden, expected)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@torch.inference_mode()
def test_whole_texts_of_transformers(dtype: torch.dtype) -> None:
    """To the bit, also with the norms that a loaded model has."""
    model = language(dtype)
    layers, given = Stock(model), texts(model)
    for number in range(len(model.layers)):
        for text in given:
            text.hidden = layers.layer(number, text)
    expected = [model.norm(text.hidden) for text in given]
    fuse_norms(model)
    seen = read(model, texts(model))
    assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))


@torch.inference_mode()
def test_a_text_goes_on_from_what_was_kept() -> None:
    """Alone or along with what it goes on from, to the same bits."""
    model = language(torch.bfloat16)
    begin, *others = texts(model)
    _, *along = read(model, [begin, *others])
    for text, expected in zip(texts(model)[1:], along, strict=True):
        text.after = begin.kept
        (alone,) = read(model, [text])
        assert torch.equal(alone, expected)


@torch.inference_mode()
def test_nothing_else_is_kept() -> None:
    """Of keys and values what they need themselves, of whoever begins."""
    model = language(torch.bfloat16)
    begin, *others = texts(model)
    read(model, [begin, *others])
    assert begin.kept.bytes() == 2 * BEGIN * 2 * 2 * 16 * len(model.layers)
    held = {tensor.untyped_storage().nbytes() for pair in begin.kept.layers for tensor in pair}
    assert held == {2 * BEGIN * 2 * 16}
    assert [text.kept for text in others] == [Kept(tokens) for tokens in LENGTHS]


@torch.inference_mode()
def test_what_took_a_linears_place_is_used() -> None:
    """Also if it came while the model stayed, and what hangs on a layer happens once a pass."""
    model, calls = language(torch.float32), []
    before = read(model, texts(model))
    attn, mlp = model.layers[1].self_attn, model.layers[2].mlp
    for home, name in ((attn, "k_proj"), (attn, "o_proj"), (mlp, "up_proj")):
        setattr(home, name, torch.nn.Sequential(getattr(home, name), torch.nn.Hardtanh()))
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    layers, given = Stock(model), texts(model)
    seen = read(model, texts(model))
    assert len(calls) == len(model.layers)
    for number in range(len(model.layers)):
        for text in given:
            text.hidden = layers.layer(number, text)
    for text, one, other in zip(given, seen, before, strict=True):
        assert torch.equal(one, model.norm(text.hidden)) and not torch.equal(one, other)
