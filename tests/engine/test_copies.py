"""Copies of inputs: what their keys tell, that threads make them, and that a hit makes none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.engine.support import PICTURES, Told, encoded, picture, reference, resolved
from vellumd import errors, images
from vellumd.engine.copies import THREADS, Copies, Copy, begin, view_size
from vellumd.engine.model import Model
from vellumd.engine.run import Run
from vellumd.images import Canvas, reference_size
from vellumd.settings import Limits

AREA, VIEW = 64 * 64, 32 * 64
SIZES = ["match", "auto", "64x96", "96x64"]


def copies(files: list[Path], size: str = "match") -> Copies:
    inputs = [reference(file.read_bytes()) for file in files]
    canvas = Canvas.plan(size, [(one.width, one.height) for one in inputs], AREA)
    return Copies(files, inputs, canvas, Limits(), AREA)


@pytest.mark.parametrize("size", SIZES)
def test_the_pixels_of_a_plain_way(files: list[Path], size: str) -> None:
    """Threads make what one line after the other would, to the bit."""
    inputs = [images.load(file).flat for file in files]
    canvas = Canvas.plan(size, [one.size for one in inputs], AREA)
    first = canvas.fit(inputs[0]) if canvas.box else inputs[0]
    views = [
        one.resize(view_size(*one.size, VIEW), Image.Resampling.LANCZOS)
        for one in (first, inputs[1])
    ]
    other = inputs[1].resize(reference_size(*inputs[1].size, AREA), Image.Resampling.LANCZOS)
    references = [canvas.fit(inputs[0]), other]
    with copies(files, size) as made:
        begin([*made.views(VIEW), *made.references()])
        sizes = made.reference_sizes
        given = [copy.picture() for copy in (*made.views(VIEW), *made.references())]
    assert [one.tobytes() for one in given] == [one.tobytes() for one in (*views, *references)]
    assert [one.size for one in given] == [one.size for one in (*views, *references)]
    assert sizes == [one.size for one in references]


def test_equal_keys_are_equal_pixels(tmp_path: Path) -> None:
    """Over pictures, sizes and places: copies of one key have the same pixels, and other
    pixels have another key; orientation and transparency are in the file's hash."""
    plain = picture(80, 60)
    tagged = plain.getexif()
    tagged[274] = 3
    clear = plain.copy()
    clear.putalpha(100)
    sent = [encoded(plain), encoded(plain, exif=tagged), encoded(clear), *PICTURES]
    found: dict[object, bytes] = {}
    for n, data in enumerate(sent):
        file = tmp_path / f"{n}.png"
        file.write_bytes(data)
        for size in SIZES:
            with copies([file, file], size) as made:
                for copy in (*made.views(VIEW), *made.references()):
                    pixels = copy.picture().tobytes()
                    assert found.setdefault(copy.key, pixels) == pixels
    assert len(set(found.values())) >= 20


def test_a_known_edit_decodes_nothing(
    model: Model, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor resizes: the hash of the file tells what is known of it. Another file is another."""
    decoded, load = [], images.load

    def counted(file: Path, *rest: Any) -> images.Picture:
        decoded.append(file)
        return load(file, *rest)

    monkeypatch.setattr(images, "load", counted)
    model.store.clear()
    first = paint(model, files)
    assert sorted(decoded) == sorted(files)  # each once, for its view and as a reference
    assert paint(model, files) == first
    assert len(decoded) == 2
    files[1].write_bytes(encoded(picture(80, 60, 9)))
    assert paint(model, files) != first
    assert decoded.count(files[1]) == 2


def test_another_size_is_not_known(model: Model, files: list[Path]) -> None:
    """What changes the copies is in their keys: the same file in another canvas is made anew."""
    model.store.clear()
    apart = []
    for size in SIZES:
        apart.append(paint(model, files, size=size))
        model.store.clear()
    assert [paint(model, files, size=size) for size in SIZES] == apart
    assert [paint(model, files, size=size) for size in SIZES] == apart


def paint(model: Model, files: list[Path], **fields: object) -> bytes:
    edit = resolved([reference(file.read_bytes()) for file in files], **fields)
    return next(Run(model, edit, Told(), lambda: False).pictures(files)).tobytes()


def test_a_broken_input_is_told(files: list[Path]) -> None:
    """What a thread raises comes to who wants the copy; the threads end all the same."""
    inputs = copies(files)
    files[0].write_bytes(PICTURES[0][:500])
    with inputs as made, pytest.raises(errors.BadImage):
        begin(made.references())
        made.views(VIEW)[0].picture()


def test_copies_that_wait_for_each_other(tmp_path: Path) -> None:
    """More copies than threads, each after another: whatever the order, all are made."""
    files = many(tmp_path, 12)
    orders: list[Callable[[list[Copy]], list[Copy]]] = [list, lambda all_: all_[::-1]]
    for order in orders:
        with copies(files) as made:
            wanted = order([*made.references(), *made.views(VIEW)])
            begin(wanted)
            assert len({copy.picture().tobytes() for copy in wanted}) > 12


def many(folder: Path, count: int) -> list[Path]:
    """Files of `count` pictures."""
    files = [folder / f"{n}.png" for n in range(count)]
    for n, file in enumerate(files):
        file.write_bytes(encoded(picture(40, 30, n)))
    return files


def test_no_decode_waits_for_another_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many are decoded at a time as there are threads, and never more."""
    decoding, most, load = 0, 0, images.load
    lock, all_at_once = threading.Lock(), threading.Barrier(THREADS, timeout=30)

    def met(*given: Any) -> images.Picture:
        nonlocal decoding, most
        with lock:
            decoding += 1
            most = max(most, decoding)
        all_at_once.wait()
        loaded = load(*given)
        with lock:
            decoding -= 1
        return loaded

    monkeypatch.setattr(images, "load", met)
    with copies(many(tmp_path, 2 * THREADS)) as made:
        wanted = [*made.views(VIEW), *made.references()]
        begin(wanted)
        for copy in wanted:
            copy.picture()
    assert most == THREADS


def test_what_is_begun_first_is_made_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one thread, so in order: each view as soon as its picture is there, then references."""
    monkeypatch.setattr("vellumd.engine.copies.THREADS", 1)
    order: list[object] = []
    with copies(many(tmp_path, 3), "auto") as made:
        views, references = made.views(VIEW), made.references()
        held = threading.Event()
        made._threads.submit(held.wait)  # until all are begun
        begin([*views, *references])
        for copy in (*views, *references):
            copy.begin().add_done_callback(lambda _, key=copy.key: order.append(key))
        held.set()
        references[-1].picture()
    assert order == [copy.key for copy in (*views, *references)]


def test_the_end_leaves_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing more is made than what a thread is at; whoever wants the rest is told."""
    begun, go, load = threading.Semaphore(0), threading.Event(), images.load

    def slow(*given: Any) -> images.Picture:
        begun.release()
        go.wait()
        return load(*given)

    monkeypatch.setattr(images, "load", slow)
    made = copies(many(tmp_path, 2 * THREADS))
    wanted = [*made.views(VIEW), *made.references()]
    with made:
        begin(wanted[:-1])
        for _ in range(THREADS):
            begun.acquire()
        # The threads go on once all that waits for them is called off.
        made._threads.submit(int).add_done_callback(lambda _: go.set())
    assert not begun.acquire(blocking=False)
    for copy in wanted:
        with pytest.raises(CancelledError):
            copy.picture()
