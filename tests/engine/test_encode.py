"""Both prompts read at once: the embeddings of a single pass, and what is kept of them."""

# transformers annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.support import picture
from vellumd.engine.content import Store
from vellumd.engine.copies import Copy, view_size
from vellumd.engine.encode import HEAD, PICTURE, PREFIX_TOKENS, TAIL, Encoder
from vellumd.engine.model import Model

CPU = torch.device("cpu")
PROMPTS = [
    "make it red",
    " ",
    "",
    "하늘을 노을로 🌅",
    "\u0301 begins with an accent",
    "two\nlines ",
]


def views(count: int) -> list[Copy]:
    sizes = ((120, 90), (64, 128), (100, 100))[:count]
    return [
        Copy.of(picture(*size, seed).resize(view_size(*size, 4096)), seed)
        for seed, size in enumerate(sizes)
    ]


def encoder_of(model: Model, store: Store | None = None) -> Encoder:
    parts, card = model.parts, model.card
    return Encoder(parts.processor, parts.text_encoder, card.prompt_tokens, store)


def tokens_of(model: Model, prompt: str, pictures: list[Copy]) -> Any:
    """All of a prompt's inputs, as the stock pipeline asks for them."""
    numbered = "".join(PICTURE.format(number) for number in range(1, len(pictures) + 1))
    return model.parts.processor(
        text=[HEAD + numbered + prompt + TAIL],
        images=[copy.picture() for copy in pictures],
        padding=True,
        return_tensors="pt",
    )


@torch.inference_mode()
def single_pass(model: Model, prompt: str, pictures: list[Copy]) -> Tensor:
    """The embedding as diffusers computes it, with the positions that it forgets."""
    inputs = tokens_of(model, prompt, pictures)
    output = model.parts.text_encoder.model(**inputs, use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden[:, PREFIX_TOKENS:]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_embeddings_of_a_single_pass(model: Model, count: int) -> None:
    """Reading the shared beginning once changes no embedding beyond float32's rounding."""
    encoder = encoder_of(model)
    pictures = views(count)
    embedded = encoder.embed(PROMPTS, pictures, CPU)
    for prompt, embedding in zip(PROMPTS, embedded, strict=True):
        torch.testing.assert_close(
            embedding, single_pass(model, prompt, pictures), rtol=0, atol=2e-5
        )


def test_no_attention_plans(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that plans for each number of tokens is out of reach, for tower and texts alone."""
    planning: dict[str, set[bool]] = {"language": set(), "vision": set()}

    def watched(name: str, attend: Any) -> Any:
        def attention(*given: Any, **named: Any) -> Any:
            planning[name].add(torch.backends.cuda.cudnn_sdp_enabled())
            return attend(*given, **named)

        return attention

    for name in planning:
        target = f"vellumd.engine.{name}.scaled_dot_product_attention"
        monkeypatch.setattr(target, watched(name, torch.nn.functional.scaled_dot_product_attention))
    for _ in range(2):
        encoder_of(model).embed(PROMPTS, views(2), CPU)
        assert planning == {"language": {False}, "vision": {False}}
        assert torch.backends.cuda.cudnn_sdp_enabled()


def test_prompts_do_not_meet(model: Model) -> None:
    """An embedding is the same to the bit whichever prompts are read with it, in any order."""
    encoder = encoder_of(model)
    pictures = views(2)
    together = encoder.embed(PROMPTS, pictures, CPU)
    backwards = encoder.embed(PROMPTS[::-1], pictures, CPU)[::-1]
    for prompt, embedding, again in zip(PROMPTS, together, backwards, strict=True):
        (alone,) = encoder.embed([prompt], pictures, CPU)
        assert torch.equal(alone, embedding)
        assert torch.equal(alone, again)


def runs(module: torch.nn.Module) -> list[int]:
    """Counts the calls of `module`."""
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_the_vision_tower_runs_once(model: Model) -> None:
    """However many prompts; each block beats as often as was foretold."""
    encoder = encoder_of(model)
    pictures = views(2)
    tower, blocks = runs(model.parts.text_encoder.model.visual.patch_embed), []
    for block in model.parts.encoder_blocks():
        blocks.append(runs(block))
    prompts = ["one", "two", "one"]
    foretold = encoder.blocks(prompts, pictures)
    encoder.embed(prompts, pictures, CPU)
    assert len(tower) == 1
    assert sum(map(len, blocks)) == foretold == 2 + 2


def test_what_is_read_may_take_the_place_of_what_is_known(model: Model) -> None:
    """A known prompt keeps its embedding also where the pictures, which went before it, come
    back and push it out while another prompt is read; of any number of bytes that are kept."""
    pictures, others = views(2), views(2)[::-1]
    exact = encoder_of(model).embed(["known", "new"], pictures, CPU)
    whole = Store(10**8)
    encoder_of(model, whole).embed(["known"], pictures, CPU)
    for limit in range(whole.size // 2, 2 * whole.size, whole.size // 20):
        encoder = encoder_of(model, Store(limit))
        for given, seen in ((["known"], pictures), (["a"], others), (["known"], pictures)):
            encoder.embed(given, seen, CPU)
        for prompts in (["known", "new"], ["known"], ["new", "known"]):
            for prompt, embedding in zip(
                prompts, encoder.embed(prompts, pictures, CPU), strict=True
            ):
                assert torch.equal(embedding, exact[prompt == "new"]), (limit, prompts)


def test_what_was_read_is_kept(model: Model) -> None:
    """A known prompt costs nothing, another one about known pictures its own tokens only;
    a hit gives the same bits as computing again."""
    store = Store(10**8)
    encoder = encoder_of(model, store)
    pictures = views(2)
    first = encoder.embed(["one", "two"], pictures, CPU)
    assert encoder.blocks(["two", "one"], pictures) == 0
    again = encoder.embed(["one", "two"], pictures, CPU)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert (store.hits["prompt"], store.misses["prompt"]) == (2, 2)
    assert encoder.blocks(["three"], pictures) == 2
    (third,) = encoder.embed(["three"], pictures, CPU)
    assert store.hits["pictures"] == 1
    assert torch.equal(third, encoder_of(model).embed(["three"], pictures, CPU)[0])
    assert encoder.blocks(["one"], pictures[::-1]) > 2  # their order counts
