"""The bench: every method on the demo, and how it counts."""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.engine import random_transformer as small
from vellumd.cli import main
from vellumd.cli.bench import table
from vellumd.engine import attention
from vellumd.engine.bench import measure, methods, run
from vellumd.engine.bench.workload import Workload, fitting
from vellumd.engine.transformer import Own
from vellumd.settings import EngineSettings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The figures of a short run on the demo, as a user starts it; printed and written."""
    out = tmp_path_factory.mktemp("bench") / "found.json"
    command = [sys.executable, "-m", "vellumd.engine", "bench", "--rounds", "1",
               "--references", "1", "--skip", "fp8-tensor", "--out", str(out)]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, check=True)
    answer: dict[str, Any] = json.loads(ran.stdout)
    assert json.loads(out.read_bytes()) == answer
    return answer


def test_every_method_is_measured(found: dict[str, Any]) -> None:
    """The predecessor's, diffusers' and ours, with errors that fit their class."""
    by_name = {method["name"]: method for method in found["methods"]}
    assert list(by_name)[:3] == [
        "predecessor: FP8 cast by layer, LoRA", "diffusers", "float32, flash",
    ]  # fmt: skip
    assert by_name["float32, flash"]["error"] < 1e-5
    assert by_name["float32, flash"]["block_error"] < 1e-6
    for method in found["methods"]:
        assert 0 < method["least_s"] <= method["forward_s"] <= method["most_s"]
        assert method["tflops"] > 0
        # Ours as guided edits run it; who reads of a forward's seconds is told so.
        assert method["prompts"] == (1 if method["name"] in list(by_name)[:2] else 2)
        if method["exactness"] == "Q":
            assert 1e-3 < method["error"] < 0.2
            # Weights as FP8 take less than those as they are.
            assert method["weights_gb"] < by_name["diffusers"]["weights_gb"]
    assert any(method["exactness"] == "A" for method in found["methods"])


def test_whole_edits_are_measured(found: dict[str, Any]) -> None:
    """By phase; a known prompt with known pictures is encoded in less time than a new one."""
    stages = found["stages"]
    assert {"encode", "denoise", "decode"} <= stages["new"].keys()
    assert stages["known"]["encode"] < stages["warm-up"]["encode"]


def test_the_table_tells_it_all(found: dict[str, Any]) -> None:
    """Each method has its line, and each edit."""
    lines = table(found).splitlines()
    for method in found["methods"]:
        assert any(line.startswith(method["name"]) and line.endswith(" x") for line in lines)
    assert sum(line.startswith("edit (") for line in lines) == 3


def test_what_is_configured_is_measured(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command hands on all settings of the engine, not its model's name alone."""
    asked: list[list[str]] = []

    def ran(command: list[str], **_: Any) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(returncode=0, stdout=json.dumps(found).encode())

    monkeypatch.setattr(subprocess, "run", ran)
    budget = "--engine.vram_budget_gb"
    assert main.main(["bench", budget, "6", "--engine.base", "x", "--layers", "2"]) == 0
    assert capsys.readouterr().out == f"{table(found)}\n"
    measured: list[argparse.Namespace] = []
    monkeypatch.setattr(run, "bench", lambda args, _: measured.append(args) or {})
    run.main(asked[0][4:])
    (args,) = measured
    assert (args.engine.vram_budget_gb, Path(args.engine.base).name) == (6, "x")
    assert (args.layers, args.references) == (2, 3)


def test_a_machine_that_holds_some_blocks(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stand for all, and whoever reads the table is told."""
    asked = argparse.Namespace(engine=EngineSettings(), random=False, layers=None)
    monkeypatch.setattr(run, "fitting", lambda *_: 2)
    some, blocks = run.subject(asked, CPU, torch.float32)
    assert (len(some.transformer_blocks), blocks) == (2, found["workload"]["layers"][1])
    assert (
        some.inner_dim
        == run.subject(
            argparse.Namespace(engine=EngineSettings(), random=False, layers=blocks),
            CPU,
            torch.float32,
        )[0].inner_dim
    )
    assert "random weights" not in table(found)
    part = {**found, "workload": {**found["workload"], "layers": [12, 60]}}
    assert "12 of 60 blocks, with random weights: a whole forward takes 5.0 times as long" in table(
        part
    )


@pytest.mark.parametrize(("free", "blocks"), [(24.9e9, 12), (5e9, 1), (1e9, 1), (140e9, 80)])
def test_blocks_that_fit_a_card(free: float, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the real size, by what is free of it."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free), 0))
    assert fitting(run.FULL_SIZE, torch.device("cuda", 0)) == blocks


def test_what_cannot_be_measured_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a line, not as Python's errors."""
    assert run.main(["--engine", '{"model": "/not/there"}']) == 1
    assert "There is no model" in capsys.readouterr().err

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(run, "bench", full)
    assert run.main([]) == 1
    assert "--layers" in capsys.readouterr().err


def test_times_are_kept_before_errors_are_known() -> None:
    """A run that is stopped while errors are measured has lost no time."""
    base = small.transformer(torch.float32, layers=2)
    workload = Workload.of(base, 128 * 128, references=1)
    wanted = argparse.Namespace(only="float32;references used", skip="", rounds=1)
    kept: list[list[dict[str, Any]]] = []
    keep = lambda methods: kept.append(copy.deepcopy(methods))  # noqa: E731
    whole = run.compared(base, workload, CPU, wanted, keep)
    assert kept[-1] == whole
    both = next(methods for methods in kept if len(methods) == len(whole))
    assert all(method["forward_s"] > 0 for method in both)
    assert "error" in whole[0] and "error" not in both[0]


def test_operations_are_counted_right() -> None:
    """The reference job: 17,066 rows, 446.7 TFLOP, 124.4 with references used again."""
    job = Workload((1, 76, 54), references=3, text=650, channels=3072, layers=60)
    assert job.rows == 17_066
    assert round(job.flops() / 1e12, 1) == 446.7
    assert round(job.flops(fresh=False) / 1e12, 1) == 124.4


@torch.inference_mode()
def test_errors_are_of_each_block_alone() -> None:
    """A block that is spoilt shows, and no other."""
    base = small.transformer(torch.float32, layers=4)
    spoilt = methods.clone(base)
    weight = spoilt.transformer_blocks[2].img_mlp.net[2].weight
    spoilt.transformer_blocks[2].img_mlp.net[2].weight = torch.nn.Parameter(weight * 1.5)
    workload = Workload((1, 4, 6), references=2, text=9, channels=128, layers=4)
    (method,) = [
        methods.Method(
            "spoilt",
            "Q",
            spoilt,
            Own(spoilt, attention.default),
            None,
            lambda: None,
            1.0,  # type: ignore[arg-type]
        )
    ]
    found = measure.block_errors(base, method, workload, CPU)
    assert [error > 1e-3 for error in found] == [False, False, True, False]


def test_a_clone_shares_what_is_not_replaced() -> None:
    """Methods stand side by side in the memory of one."""
    base = small.transformer(torch.float32)
    other = methods.clone(base)
    for one, same in zip(base.parameters(), other.parameters(), strict=True):
        assert one is same
    assert other.transformer_blocks[0] is not base.transformer_blocks[0]
