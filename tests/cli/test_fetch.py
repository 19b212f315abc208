"""`vellumd fetch` against a hub on this machine, by the real huggingface_hub."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import unquote

import pytest

from vellumd import catalogue, platform
from vellumd.cli import checks
from vellumd.cli import fetch as fetch_command
from vellumd.settings import EngineSettings

COMMIT = "c" * 40
MODEL = "Qwen/Qwen-Image-Edit-2511"
LORA = "lightx2v/Qwen-Image-Edit-2511-Lightning"
NAME = "qwen-image-edit-2511"
LORAS = [f"Qwen-Image-Edit-2511-Lightning-{n}steps-V1.0-bf16.safetensors" for n in (4, 8)]


class Hub(ThreadingHTTPServer):
    """Repositories of small files, spoken as the hub does, as far as a download needs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        weights = {f"{part}/model.safetensors": os.urandom(200_000) for part in catalogue.PARTS}
        self.repos: dict[str, dict[str, bytes]] = {
            MODEL: {"model_index.json": b"{}", **weights, "README.md": b"x", "vae/old.bin": b"x"},
            LORA: {name: os.urandom(50_000) for name in LORAS},
        }
        self.asked: list[str] = []
        self.stall_at: str | None = None
        self.stalled = threading.Event()
        self.damage: str | None = None
        self.gated = False

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if self.server.gated:
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path):
            self.list(found[1])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self.file(found[2], self.server.repos[found[1]][found[2]])
        else:
            self.send_error(404)

    def list(self, repo: str) -> None:
        files = [
            {
                "rfilename": name,
                "size": len(data),
                "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data),
                        "pointerSize": 1} if name.endswith(".safetensors") else None,
            }
            for name, data in self.server.repos[repo].items()
        ]  # fmt: skip
        body = json.dumps({"id": repo, "sha": COMMIT, "siblings": files}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def file(self, name: str, data: bytes) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.server.asked.append(name)
        if name == self.server.damage:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if name == self.server.stall_at:
            self.wfile.write(data[: len(data) // 2])
            self.server.stalled.set()
            threading.Event().wait()
        self.wfile.write(data)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


Command = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path) -> Command:
    """Start `vellumd fetch WORDS` in a folder and a home of its own."""
    environ = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"),
        "XDG_DATA_HOME": str(tmp_path / "data"), "LOCALAPPDATA": str(tmp_path / "data"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
    }  # fmt: skip

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "vellumd", "fetch", *words], env=environ, cwd=tmp_path,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_it_shows_size_and_licence_and_begins_only_when_told(
    hub: Hub, fetch: Command, tmp_path: Path
) -> None:
    """Without somebody who can say yes nothing is fetched, but all is told."""
    code, out, err = ended(fetch(NAME))
    assert code == 1 and "--yes" in err and hub.asked == []
    assert "Apache-2.0" in out and "0.0 GB in 9 files" in out
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("memory", "settings", "said"),
    [
        (24, {}, "RTX 4090, 24 GB: transformer resident, encoder streamed"),
        (24, {"vram_budget_gb": 12}, "RTX 4090, 12 GB: 38 blocks streamed, encoder streamed"),
        (6, {}, "RTX 4090, 6 GB: too small for 60 blocks streamed"),
    ],
)
def test_it_tells_what_the_card_will_do(
    memory: int, settings: dict[str, int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the seconds of an edit, before hours of fetching."""
    card = checks.Card("RTX 4090", memory * 10**9, (8, 9))
    monkeypatch.setattr(platform, "nvidia_driver", lambda: True)
    monkeypatch.setattr(platform, "memory", lambda: platform.Memory(64 * 10**9, 60 * 10**9))
    monkeypatch.setattr(checks, "torch_says", lambda: ("13.0", card))
    sizes = catalogue.CATALOGUE[NAME].sizes
    assert sizes is not None
    told = fetch_command._on_card(sizes, EngineSettings(**settings))
    assert told.startswith(said) and "a balanced edit: about" in told
    monkeypatch.setattr(checks, "torch_says", Mock(side_effect=OSError))
    assert "none that torch can use" in fetch_command._on_card(sizes, EngineSettings())


def test_a_whole_model_comes_with_its_loras_and_without_pickles(
    hub: Hub, fetch: Command, tmp_path: Path
) -> None:
    """Each file as it is in the repository; what is there is not fetched again."""
    code, out, err = ended(fetch(NAME, "--yes"))
    assert code == 0, err
    folder = tmp_path / "data/vellumd/models" / NAME
    wanted = {
        **{
            n: data for n, data in hub.repos[MODEL].items() if n not in ("README.md", "vae/old.bin")
        },
        **{f"loras/{name}": data for name, data in hub.repos[LORA].items()},
    }
    visible = [f for f in folder.rglob("*") if f.is_file() and ".cache" not in f.parts]
    assert {f.relative_to(folder).as_posix(): f.read_bytes() for f in visible} == wanted
    assert f"--engine.model {NAME}" in out
    fetched = len(hub.asked)
    assert ended(fetch(NAME, "--yes"))[0] == 0
    assert len(hub.asked) == fetched == len(wanted)


def test_a_killed_fetch_goes_on_where_it_was(hub: Hub, fetch: Command, tmp_path: Path) -> None:
    """What had come stays; the file that was on its way is fetched anew, its half is removed."""
    hub.stall_at = "transformer/model.safetensors"
    process = fetch(NAME, "--yes", "--to", str(tmp_path / "model"))
    assert hub.stalled.wait(60)
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.communicate()
    before = list(hub.asked)
    hub.stall_at = None
    code, out, err = ended(fetch(NAME, "--yes", "--to", str(tmp_path / "model")))
    assert code == 0, err
    again = hub.asked[len(before) :]
    assert set(before) & set(again) == {"transformer/model.safetensors"}
    assert not list((tmp_path / "model").rglob("*.incomplete"))
    assert str(tmp_path / "model") in out.splitlines()[-1]


def test_a_file_that_came_damaged_does_not_stay(hub: Hub, fetch: Command, tmp_path: Path) -> None:
    """A bit that flipped on the way is seen by the hash."""
    hub.damage = "vae/model.safetensors"
    code, _, err = ended(fetch(NAME, "--yes", "--to", str(tmp_path / "model")))
    assert code == 1 and "damaged" in err
    assert not (tmp_path / "model/vae/model.safetensors").exists()


def test_a_second_fetch_into_a_folder_is_refused(hub: Hub, fetch: Command, tmp_path: Path) -> None:
    """Two would remove each other's halves."""
    hub.stall_at = "vae/model.safetensors"
    first = fetch(NAME, "--yes", "--to", str(tmp_path / "model"))
    assert hub.stalled.wait(60)
    code, _, err = ended(fetch(NAME, "--yes", "--to", str(tmp_path / "model")))
    first.kill()
    first.communicate()
    assert code == 1 and "Another vellumd" in err


def test_what_is_not_open_says_how_to_get_it(hub: Hub, fetch: Command) -> None:
    """A licence that has to be accepted first."""
    hub.gated = True
    code, _, err = ended(fetch(NAME))
    assert code == 1 and "HF_TOKEN" in err and "Traceback" not in err


def test_a_hub_that_is_away_is_told(hub: Hub, fetch: Command) -> None:
    """No traceback, but what to do."""
    hub.shutdown()
    hub.server_close()
    code, _, err = ended(fetch(NAME))
    assert code == 1 and "run the command again" in err and "Traceback" not in err


def test_names_are_listed_and_others_refused(fetch: Command) -> None:
    """What there is, and what there is not."""
    code, out, _ = ended(fetch())
    assert code == 0 and set(catalogue.CATALOGUE) == {line.split()[0] for line in out.splitlines()}
    code, _, err = ended(fetch("nothing"))
    assert code == 1 and NAME in err


def test_a_disk_without_room_is_told_first(
    hub: Hub, fetch: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for 40 GB to learn that 50 do not fit."""
    from vellumd.cli import fetch as command
    from vellumd.cli.main import Refused

    huge = command.Wanted("a/b", COMMIT, "x", 10**18, None, tmp_path)
    with pytest.raises(Refused, match="make room"):
        command._check_room([huge], tmp_path / "new")


def test_a_name_that_was_not_fetched_says_how(tmp_path: Path) -> None:
    """`engine.model = NAME` before the fetch."""
    from vellumd import errors, model_card

    with pytest.raises(errors.ModelMissing, match=f"vellumd fetch {NAME}"):
        model_card.read(NAME)
