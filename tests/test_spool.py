"""The spool: a folder is whole or not there; a full disk is told, never hidden."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vellumd import errors
from vellumd.models import ImageRef, ResolvedEdit, Result
from vellumd.settings import Limits
from vellumd.store.spool import STAGED_S, Spool, sha256_of


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path, Limits())


def stage(spool: Spool, data: bytes, name: str = "a.png") -> ImageRef:
    path, file = spool.open_incoming()
    with file:
        file.write(data)
    return spool.admit(path, name)


def edit(*images: ImageRef, mask: ImageRef | None = None) -> ResolvedEdit:
    return ResolvedEdit(
        model="demo", prompt="red", images=images, mask=mask, steps=1, true_cfg_scale=1, seed=1
    )


def test_a_jobs_folder_tells_its_story(spool: Spool, picture: Callable[..., bytes]) -> None:
    """Inputs by number, the mask, the request; the files are the bytes that came in."""
    one, two = stage(spool, picture(1)), stage(spool, picture(2, format="JPEG"))
    spool.create("job", edit(one, two, mask=one), {"prompt": "red"})
    folder = spool.folder("job")
    assert sorted(file.name for file in folder.iterdir()) == [
        "input-1.png", "input-2.jpg", "mask.png", "request.json",
    ]  # fmt: skip
    assert sha256_of(folder / "input-2.jpg") == two.sha256
    assert json.loads((folder / "request.json").read_text()) == {"prompt": "red"}


def test_a_refused_picture_leaves_nothing(spool: Spool) -> None:
    """What is no picture is gone from the disk when the error is out."""
    with pytest.raises(errors.VellumError):
        stage(spool, b"no picture")
    assert list((spool.root / "staged").iterdir()) == []


def test_a_picture_that_was_not_staged(spool: Spool, picture: Callable[..., bytes]) -> None:
    """An unknown or expired hash is not_found, and no half folder stays."""
    known = stage(spool, picture())
    unknown = known.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(errors.NotFound):
        spool.create("job", edit(known, unknown), {})
    assert not spool.folder("job").exists()
    with pytest.raises(errors.NotFound):
        spool.staged("0" * 64)


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "storage_full"), (errno.EIO, "internal")]
)
def test_a_disk_that_refuses(
    tmp_path: Path, picture: Callable[..., bytes], number: int, code: str
) -> None:
    """A write that fails is told by its code, and the folder is removed."""

    def broken(path: Path, data: bytes) -> None:
        raise OSError(number, os.strerror(number), str(path))

    spool = Spool(tmp_path, Limits(), write=broken)
    one = stage(spool, picture())
    with pytest.raises(errors.VellumError) as caught:
        spool.create("job", edit(one), {})
    assert caught.value.code == code and str(tmp_path) not in caught.value.message
    assert not spool.folder("job").exists()


def test_staged_pictures_last_an_hour(spool: Spool, picture: Callable[..., bytes]) -> None:
    """After it they go; what a job uses stays in the job's folder."""
    one, two = stage(spool, picture(1)), stage(spool, picture(2))
    spool.create("job", edit(one), {})
    past = time.time() - STAGED_S - 1
    for ref in (one, two):
        os.utime(spool.root / "staged" / ref.sha256, (past, past))
    assert spool.staged(two.sha256) == two.model_copy(update={"name": ""})
    spool.expire_staged()
    assert [file.name for file in (spool.root / "staged").iterdir()] == [two.sha256]
    assert sha256_of(spool.folder("job") / "input-1.png") == one.sha256


def flip(file: Path) -> None:
    """One bit of a picture's colours changes, as on a failing disk."""
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_damaged_picture_spoils_no_later_one(
    spool: Spool, picture: Callable[..., bytes], streamed: bool
) -> None:
    """Sent again it is whole again; named by its hash it is gone."""
    data = picture(format="BMP")
    ref = stage(spool, data)
    flip(spool.root / "staged" / ref.sha256)
    used = spool.usage.bytes
    assert ref.sha256 == (stage(spool, data) if streamed else spool.admit_bytes(data, "")).sha256
    spool.create("job", edit(ref), {})
    assert sha256_of(spool.folder("job") / "input-1.bmp") == ref.sha256
    assert spool.usage.bytes == used
    flip(spool.root / "staged" / ref.sha256)
    with pytest.raises(errors.NotFound):
        spool.staged(ref.sha256)
    with pytest.raises(errors.Expired, match="damaged"):
        spool.restage("job", edit(ref))
    assert list((spool.root / "staged").iterdir()) == []


def test_many_jobs_of_one_picture_at_once(spool: Spool, picture: Callable[..., bytes]) -> None:
    """The same bytes sent by many at the same time: each job gets its input."""
    data = picture(format="BMP", size=(300, 300))

    def send(number: int) -> str:
        ref = spool.admit_bytes(data, "a.bmp") if number % 2 else stage(spool, data)
        spool.create(f"job-{number}", edit(ref), {})
        return sha256_of(spool.folder(f"job-{number}") / "input-1.bmp")

    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(send, range(400))) == {hashlib.sha256(data).hexdigest()}
    assert len(list((spool.root / "staged").iterdir())) == 1


def test_only_whole_results_are_adopted(spool: Spool, picture: Callable[..., bytes]) -> None:
    """result.json counts when every file in it is there with its hash."""
    spool.create("job", edit(stage(spool, picture())), {})
    data = picture(9)
    folder = spool.folder("job")
    (folder / "result-1.png").write_bytes(data)
    result = Result(
        n=1, type="image/png", bytes=len(data), sha256=sha256_of(folder / "result-1.png"),
        width=64, height=48, seed=1,
    )  # fmt: skip
    assert spool.adopt("job") is None
    (folder / "result.json").write_text(
        json.dumps({"results": [result.model_dump()], "elapsed_s": 1.0})
    )
    adopted = spool.adopt("job")
    assert adopted and adopted.results == (result,)
    (folder / "result-1.png").write_bytes(data[:-1])
    assert spool.adopt("job") is None
    (folder / "result.json").write_text("{")
    assert spool.adopt("job") is None


def test_restaging_after_expiry(spool: Spool, picture: Callable[..., bytes]) -> None:
    """A job's inputs can be used again for a retry, whether still staged or not."""
    one = stage(spool, picture())
    spool.create("job", edit(one), {})
    spool.restage("job", edit(one))
    (spool.root / "staged" / one.sha256).unlink()
    spool.restage("job", edit(one))
    assert spool.staged(one.sha256).sha256 == one.sha256


def test_a_folder_in_the_way_is_left_alone(spool: Spool, picture: Callable[..., bytes]) -> None:
    """A job's folder that is there already is an error by code, and stays as it is."""
    one = stage(spool, picture())
    spool.create("job", edit(one), {"first": True})
    with pytest.raises(errors.Internal):
        spool.create("job", edit(one), {"first": False})
    assert json.loads((spool.folder("job") / "request.json").read_text()) == {"first": True}


def test_an_old_job_is_staged_again(spool: Spool, picture: Callable[..., bytes]) -> None:
    """A retry's pictures get an hour of their own, however old the job's files are."""
    one = stage(spool, picture())
    spool.create("job", edit(one), {})
    old = time.time() - 2 * STAGED_S
    os.utime(spool.folder("job") / "input-1.png", (old, old))
    spool.expire_staged()
    with pytest.raises(errors.NotFound):
        spool.staged(one.sha256)
    spool.restage("job", edit(one))
    spool.expire_staged()
    assert spool.staged(one.sha256).sha256 == one.sha256
    assert [file.name for file in (spool.root / "staged").iterdir()] == [one.sha256]
    spool.remove("job")
    (spool.root / "staged" / one.sha256).unlink()
    with pytest.raises(errors.Expired):
        spool.restage("job", edit(one))
