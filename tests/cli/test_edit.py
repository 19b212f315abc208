"""`vellumd edit` with a running daemon: what it sends, where results go, what it tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import BROKEN, KEY, Api
from vellumd.cli import main


def test_one_edit_of_several_pictures(
    folder: Path, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    """All pictures go into one job with every option; the result is OUT."""
    words = "edit a.jpg b.jpg -p red -o out.png --preset fastest --steps 4 --cfg 2 --seed 7"
    words += f" --size auto --mask a.jpg --negative-prompt blue --url {api.url}"
    assert main.main(words.split()) == main.OK
    assert (folder / "out.png").read_bytes() == b"picture 1"
    pictures = [(folder / name).read_bytes() for name in ("a.jpg", "b.jpg", "a.jpg")]
    assert list(api.inputs.values()) == pictures
    out, err = capsys.readouterr()
    assert "out.png  8x6  seed 42" in out
    assert "note: The embedded demo model made this" in out
    assert "(pictures are noise)" in out
    assert "denoise, step 1 of 2, 3 s left\n" in err


def test_several_results_are_numbered(folder: Path, api: Api) -> None:
    """--n 2 gives OUT_1 and OUT_2."""
    assert main.main(["edit", "a.jpg", "-p", "x", "-o", "o.png", "--n", "2", "--url", api.url]) == 0
    assert (folder / "o_1.png").read_bytes() == b"picture 1"
    assert (folder / "o_2.png").read_bytes() == b"picture 2"


def test_each_picture_by_itself(folder: Path, api: Api) -> None:
    """--each makes one job a picture, in the picture's format, beside it."""
    assert main.main(["edit", "a.jpg", "b.jpg", "-p", "x", "--each", "--url", api.url]) == 0
    assert len(api.jobs) == 2
    assert (folder / "a-edited.jpg").is_file()
    assert (folder / "b-edited.jpg").is_file()


def test_each_into_a_folder(folder: Path, api: Api) -> None:
    """With --each, -o is a folder and names are kept."""
    assert main.main(["edit", "a.jpg", "-p", "x", "--each", "-o", "to", "--url", api.url]) == 0
    assert (folder / "to/a.jpg").is_file()


def test_own_names_never_overwrite(folder: Path, api: Api) -> None:
    """Without -o a second result gets a free name; the first stays."""
    (folder / "a-edited.png").write_bytes(b"mine")
    assert main.main(["edit", "a.jpg", "-p", "x", "--url", api.url]) == 0
    assert (folder / "a-edited.png").read_bytes() == b"mine"
    assert (folder / "a-edited (2).png").read_bytes() == b"picture 1"


def test_the_ending_of_out_chooses_the_format(folder: Path, api: Api) -> None:
    """-o x.jpg asks for JPEG; --format wins over it."""
    assert main.main(["edit", "a.jpg", "-p", "x", "-o", "x.jpg", "--url", api.url]) == 0
    assert api.jobs["job-1"]["results"][0]["type"] == "image/jpeg"
    words = ["edit", "a.jpg", "-p", "x", "-o", "x.jpg", "--format", "webp", "--url", api.url]
    assert main.main(words) == 0
    assert api.jobs["job-2"]["results"][0]["type"] == "image/webp"


def test_a_failed_job_ends_with_1(
    folder: Path, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job's error is told, nothing is written, other pictures go on."""
    words = ["edit", "a.jpg", "b.jpg", "-p", "fail it", "--each", "--url", api.url]
    assert main.main(words) == main.FAILED
    err = capsys.readouterr().err
    assert "a.jpg: No room." in err
    assert "b.jpg: No room." in err
    assert sorted(file.name for file in folder.glob("*.jpg")) == ["a.jpg", "b.jpg"]


def test_a_refusal_tells_the_daemons_reason(
    folder: Path, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the daemon finds wrong reaches the terminal, code included."""
    words = ["edit", "a.jpg", "-p", "x", "--size", "huge", "--url", api.url]
    assert main.main(words) == main.FAILED
    assert "'huge' is not a size" in (err := capsys.readouterr().err)
    assert "(bad_size)" in err


def test_the_key_is_sent(folder: Path, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    """--key and --key-file open a daemon that wants one; without it the reason is told."""
    api.key = KEY
    edit = ["edit", "a.jpg", "-p", "x", "--url", api.url]
    assert main.main(edit) == main.FAILED
    assert "(unauthorized)" in capsys.readouterr().err
    assert main.main([*edit, "--key", KEY]) == 0
    (folder / "key").write_text(f"{KEY}\n")
    assert main.main([*edit, "--key-file", "key"]) == 0


@pytest.mark.parametrize("key", ["é", "ключ", "two words", "line\n", ""])
def test_what_is_no_key_is_told(
    folder: Path, api: Api, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    """It cannot be sent: wrong usage, or a wrong file, and not a daemon that is not there."""
    edit = ["edit", "a.jpg", "-p", "x", "--url", api.url]
    with pytest.raises(SystemExit) as caught:
        main.main([*edit, "--key", key])
    assert caught.value.code == main.USAGE
    assert "argument --key: a key has ASCII characters only" in capsys.readouterr().err
    (folder / "key").write_bytes(f"{key}\n{key}".encode("latin-1", "replace"))
    assert main.main([*edit, "--key-file", "key"]) == main.FAILED
    assert "key: holds no key" in capsys.readouterr().err


def test_the_daemon_of_the_data_folder_is_found(folder: Path, api: Api) -> None:
    """Without --url, the daemon that announced itself in store.dir does the edit."""
    (folder / "d").mkdir()
    (folder / "d/daemon.json").write_text(json.dumps({"pid": 1, "url": api.url}))
    assert main.main(["edit", "a.jpg", "-p", "x", "--store.dir", "d"]) == 0
    assert len(api.jobs) == 1


def test_the_key_of_the_data_folder_is_found(
    folder: Path, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    """The daemon names the file, here with a byte order mark; --key wins, and none is told."""
    api.key = KEY
    (folder / "d").mkdir()
    announced = {"pid": 1, "url": api.url, "key_file": str(folder / "key")}
    (folder / "d/daemon.json").write_text(json.dumps(announced))
    edit = ["edit", "a.jpg", "-p", "x", "--store.dir", "d"]
    assert main.main(edit) == main.FAILED
    assert "--key-file" in capsys.readouterr().err
    (folder / "key").write_text(f"{KEY}\n", "utf-8-sig")
    assert main.main(edit) == 0
    assert main.main([*edit, "--key", "other"]) == main.FAILED
    assert len(api.jobs) == 1


def test_a_daemon_that_is_named_must_answer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--url to nowhere ends with 69 instead of loading an engine."""
    words = ["edit", "a.jpg", "-p", "x", "--url", "http://127.0.0.1:9"]
    assert main.main(words) == main.UNAVAILABLE
    assert "No daemon answers at http://127.0.0.1:9" in capsys.readouterr().err


def test_a_missing_picture_is_told_first(
    folder: Path, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is sent when one of the pictures is not there."""
    assert main.main(["edit", "a.jpg", "c.jpg", "-p", "x", "--url", api.url]) == main.FAILED
    assert "no picture 'c.jpg'" in capsys.readouterr().err
    assert not api.inputs


def test_a_refused_picture_keeps_nothing_from_the_others(
    folder: Path, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --each, the refusal names the picture and the rest is edited."""
    (folder / "a.jpg").write_bytes(BROKEN)
    words = ["edit", "a.jpg", "b.jpg", "-p", "x", "--each", "--url", api.url]
    assert main.main(words) == main.FAILED
    assert "vellumd: a.jpg: The picture's file is cut off." in capsys.readouterr().err
    assert (folder / "b-edited.jpg").is_file()


@pytest.mark.parametrize("words", [["-o", "x.tiff"], ["-o", "b.jpg", "--each"]])
def test_an_out_that_cannot_be_is_told_first(
    folder: Path, api: Api, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """A PNG is not written under another format's name, nor a folder over a file."""
    before = sorted(folder.iterdir())
    assert main.main(["edit", "a.jpg", "-p", "x", *words, "--url", api.url]) == main.FAILED
    assert words[1] in capsys.readouterr().err
    assert not api.inputs
    assert sorted(folder.iterdir()) == before


def test_an_address_may_lack_its_scheme(folder: Path, api: Api) -> None:
    """--url HOST:PORT is http."""
    url = api.url.removeprefix("http://")
    assert main.main(["edit", "a.jpg", "-p", "x", "-o", "o.png", "--url", url]) == main.OK
