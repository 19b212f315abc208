"""The demo's training: equal to the stock classes, able to go on, and written as loaded."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vellumd import model_card
from vellumd.demo import world
from vellumd.demo.painter import to_bytes
from vellumd.demo.scenes import draw_scenes
from vellumd.demo.train import __main__ as command
from vellumd.demo.train import base, forward, lora, model, vae
from vellumd.demo.train.data import Pool, _shrink, painter
from vellumd.demo.train.optimizer import Optimizer, orthogonal
from vellumd.demo.train.run import UNTIMED, Run
from vellumd.engine import loading
from vellumd.engine.copies import Copy
from vellumd.engine.encode import PREFIX_TOKENS, TEMPLATE, Encoder
from vellumd.engine.lora import Loras
from vellumd.model_card import DEMO_FOLDER
from vellumd.models import LoraRef

CPU = torch.device("cpu")
PROMPTS = ["make the star red", "put the ring of picture 2 into picture 1", "é😀 한국"]


@pytest.fixture(scope="module")
def parts() -> model.Components:
    """Untrained components whose every weight matters."""
    made = model.components(seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (*made.transformer.parameters(), *made.text_encoder.parameters()):
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return made


@pytest.mark.parametrize("pictures", [1, 2, 3])
def test_batched_forwards_equal_the_stock_ones(parts: model.Components, pictures: int) -> None:
    """Embeddings with real 3-D positions and velocities, padding and all, to 1e-4."""
    generator = torch.Generator().manual_seed(pictures)
    shape = (len(PROMPTS), pictures, model.VIEW, model.VIEW, 3)
    views = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    noisy = torch.randn(len(PROMPTS), forward.TOKENS, 64, generator=generator)
    references = torch.randn(len(PROMPTS), pictures * forward.TOKENS, 64, generator=generator)
    sigma = torch.tensor([0.1, 0.5, 0.9])
    prompts = forward.Prompts(parts.words, PROMPTS, pictures)
    turns = forward.rotations(parts.text_encoder, parts.transformer, prompts, CPU)
    with torch.no_grad():
        seen = forward.see(
            parts.text_encoder, forward.to_patches(views.flatten(0, 1)), turns.vision
        ).reshape(len(PROMPTS), -1, 192)
        text = forward.read(parts.text_encoder, prompts.ids, seen, prompts.image_at, turns.language)
        velocity = forward.transform(
            parts.transformer, noisy, references, text, prompts.mask, sigma, turns,
            forward.transform_block,
        )  # fmt: skip
    stock = Encoder(model.processor(parts.words), parts.text_encoder, 256)
    for row, prompt in enumerate(PROMPTS):
        pictures_seen = [
            Copy.of(Image.fromarray(view.numpy()), n) for n, view in enumerate(views[row])
        ]
        (wanted,) = stock.embed([prompt], pictures_seen, CPU)
        words = text[row, prompts.mask[row]]
        torch.testing.assert_close(words, wanted[0], rtol=0, atol=1e-4)
        with torch.no_grad():
            (expected,) = parts.transformer(
                hidden_states=torch.cat([noisy, references], dim=1)[row : row + 1],
                timestep=sigma[row : row + 1],
                encoder_hidden_states=words[None],
                img_shapes=[[(1, forward.ROWS, forward.ROWS)] * (1 + pictures)],
                return_dict=False,
            )
        torch.testing.assert_close(velocity[row], expected[0, : forward.TOKENS], rtol=0, atol=1e-4)


def test_the_template_has_its_64_tokens() -> None:
    """The stock pipeline cuts 64 tokens off, whatever they are."""
    words = model.tokenizer()
    head = TEMPLATE.split("{}")[0]
    assert len(words(head)["input_ids"]) == PREFIX_TOKENS


def test_views_are_shrunk_as_the_engine_does_it() -> None:
    """The matrix in place of Pillow's Lanczos differs by rounding only."""
    scene = draw_scenes(np.random.default_rng(3), 2)
    picture = painter(CPU)(scene)
    matrix = torch.from_numpy(_shrink())
    mine = torch.einsum("vs,nstc,wt->nvwc", matrix, picture, matrix).clamp(0, 1) * 255
    for row in range(2):
        theirs = Image.fromarray(to_bytes(picture[row].numpy())).resize(
            (model.VIEW, model.VIEW), Image.Resampling.LANCZOS
        )
        assert np.abs(mine[row].numpy() - np.asarray(theirs)).max() <= 2


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 24, 8), (2, 8, 24)])
def test_updates_are_orthogonal(shape: tuple[int, ...]) -> None:
    """All singular values come near 1, whatever the matrices' scale."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert values.min() > 0.5 and values.max() < 1.4


def test_the_optimizer_learns_and_goes_on() -> None:
    """A small regression is learned; a restored optimizer takes the very same step."""
    generator = torch.Generator().manual_seed(0)
    inputs, wanted = (torch.randn(64, 8, generator=generator) for _ in range(2))
    wanted = inputs @ wanted[:8]

    def fresh() -> tuple[torch.nn.Sequential, Optimizer]:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
        matrices = [net[0].weight, net[1].weight]
        return net, Optimizer(matrices, [net[0].bias, net[1].bias], lr=0.02, muon=2.0)

    def step(net: torch.nn.Sequential, optimizer: Optimizer) -> float:
        loss = torch.nn.functional.mse_loss(net(inputs), wanted)
        loss.backward()
        optimizer.step()
        return loss.item()

    net, optimizer = fresh()
    losses = [step(net, optimizer) for _ in range(150)]
    assert losses[-1] < 0.1 * losses[0]
    again, resumed = fresh()
    again.load_state_dict(net.state_dict())
    resumed.restore(copy.deepcopy(optimizer.state()))
    step(net, optimizer)
    step(again, resumed)
    assert torch.equal(net[0].weight, again[0].weight)


def test_a_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps and time are counted over sittings; what compiles is not timed."""
    now = 0.0
    monkeypatch.setattr("vellumd.demo.train.run.time.monotonic", lambda: now)
    told: list[dict[str, Any]] = []

    def sit(most: int) -> tuple[Run, list[float]]:
        nonlocal now
        run, scales = Run(tmp_path, "vae", minutes=4.0, seed=1), []
        for scale in run.steps(lambda: {"weight": len(scales)}, told.append):
            scales.append(scale)
            now += 10.0
            if len(scales) == most:
                break
        return run, scales

    first, scales = sit(UNTIMED + 10)
    assert told == [] and scales[0] < scales[-1]
    # Of ten timed steps of 10 s the last checkpoint has nine.
    second, rest = sit(1000)
    assert len(told) == 1
    assert first.step == UNTIMED + 9
    assert len(rest) == UNTIMED + 24 - 9
    assert second.step == first.step + len(rest)
    assert rest[-1] < rest[0]
    assert sit(1000)[1] == []


def test_branches_are_a_lora_of_the_real_key_names(parts: model.Components, tmp_path: Path) -> None:
    """Saved branches do through the engine's LoRA code what they did in training."""
    transformer = model.transformer()
    transformer.load_state_dict(parts.transformer.state_dict())
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, 2 * forward.TOKENS, 64, generator=generator)
    text = torch.randn(1, 20, 192, generator=generator)

    def velocity(of: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = of(
                hidden_states=noisy, timestep=torch.tensor([0.5]), encoder_hidden_states=text,
                img_shapes=[[(1, 8, 8)] * 2], return_dict=False,
            )[0]  # fmt: skip
        return found

    plain = velocity(transformer)
    branches = lora.adapt(transformer)
    for branch in branches.values():
        torch.nn.init.normal_(branch.up, std=0.05, generator=generator)
    adapted = velocity(transformer)
    saved = model.Components(
        parts.words, parts.text_encoder, parts.transformer, parts.vae, lora.tensors(branches)
    )
    model.save(saved, tmp_path)
    lora.release(transformer, branches)
    assert torch.equal(velocity(transformer), plain)
    loaded = loading.load(tmp_path, CPU, lambda *_: None)
    card = model_card.read(str(tmp_path))
    without = velocity(loaded.transformer)
    Loras(loaded, tmp_path, card, {}).use([LoraRef(name="lightning-8")])
    difference = (velocity(loaded.transformer) - without) - (adapted - plain)
    assert difference.norm() < 0.05 * (adapted - plain).norm()


def test_a_vae_is_taken_over() -> None:
    """With its weights and its latents' statistics."""
    made, loaded = model.components(seed=1).vae, loading.load(DEMO_FOLDER, CPU, lambda *_: None).vae
    vae.take(made, DEMO_FOLDER)
    for name, weight in loaded.named_parameters():
        assert torch.equal(made.get_parameter(name), weight)
    assert made.config.latents_mean == loaded.config.latents_mean
    assert made.config.latents_std == loaded.config.latents_std


@pytest.mark.timeout(400)
def test_all_stages_end_in_a_model_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command at a thousandth of its data: each stage steps, saves and is logged."""
    monkeypatch.setattr("vellumd.demo.train.run.UNTIMED", 2)
    monkeypatch.setattr(command, "GUIDANCE", (3.0,))
    few = {kind: world.KINDS[kind] for kind in ("recolour", "put", "compose")}
    monkeypatch.setattr(world, "KINDS", few)
    monkeypatch.setattr(lora, "WITHIN", 1)
    monkeypatch.setattr(vae, "AHEAD", 4)
    plan = command.Plan(vae=0.01, base=0.01, lora=0.01, share=0.0002, check=1, until="lora")
    command.train(tmp_path, plan, seed=3, device=CPU)
    log = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert {"vae", "base", "lora"} <= {line.get("stage") for line in log}
    assert len([line for line in log if "success" in line]) == len(command.GUIDANCE) + 1
    loading.load(tmp_path / "model", CPU, lambda *_: None)
    assert model_card.read(str(tmp_path / "model")) == model.CARD
    assert Pool(model.tokenizer(), 3, CPU).kinds == ["compose"]
    assert base.sigmas(8)[0] == lora.sigmas()[0] == 1.0
