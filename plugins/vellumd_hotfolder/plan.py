"""Which files make which edit: from the picture of an inbox to orders. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from vellumd_hotfolder import names
from vellumd_hotfolder.scan import Entry, Folder

Kind = Literal["file", "folder"]


@dataclass(frozen=True, slots=True)
class Order:
    """One edit: its pictures, the texts that go with them, and those that are only read.

    `key` is the picture's path, or the folder's for one edit of all its pictures. `texts`
    are claimed with the pictures; `read` and then `texts` say what to do, weakest first.
    """

    key: str
    kind: Kind
    pictures: tuple[Entry, ...]
    texts: tuple[Entry, ...] = ()
    read: tuple[Entry, ...] = ()
    batch: str | None = None

    @property
    def signature(self) -> tuple[object, ...]:
        """Differs once any of the files does."""
        return tuple(
            (entry.path, entry.signature) for entry in (*self.read, *self.texts, *self.pictures)
        )


@dataclass(slots=True)
class Plan:
    """The orders by key; sub-folders that wait for `_ready`; texts that have to be renamed."""

    orders: dict[str, Order] = field(default_factory=dict)
    unready: list[str] = field(default_factory=list)
    renames: dict[str, str] = field(default_factory=dict)


def make(inbox: Folder, max_images: int, *, require_ready: bool) -> Plan:
    """The orders of an inbox. `max_images` is the most pictures of one edit."""
    plan = Plan()
    own = [inbox.texts[name] for name in (*names.EACH, *names.ONE_EDIT) if name in inbox.texts]
    _each(inbox, tuple(own), plan)
    for folder in inbox.folders:
        _plan(folder, tuple(own), plan, max_images, require_ready)
    return plan


def _plan(
    folder: Folder, above: tuple[Entry, ...], plan: Plan, max_images: int, require_ready: bool
) -> None:
    each = tuple(folder.texts[name] for name in names.EACH if name in folder.texts)
    one = tuple(folder.texts[name] for name in names.ONE_EDIT if name in folder.texts)
    if require_ready and folder.pictures and names.READY not in folder.texts:
        plan.unready.append(folder.path)
    elif one and not each and len(folder.pictures) <= max_images:
        _one(folder, above, one, plan)
    else:
        if one and not each:
            # Said by the name from now on: when most of the pictures are taken, the few
            # that are left shall not look like one edit.
            plan.renames |= {entry.path: names.AS_EACH[names.key(entry.name)] for entry in one}
        _each(folder, (*above, *one, *each), plan)
    for child in folder.folders:
        _plan(child, (*above, *each), plan, max_images, require_ready)


def _one(folder: Folder, above: tuple[Entry, ...], one: tuple[Entry, ...], plan: Plan) -> None:
    """All pictures of a folder as one edit."""
    if folder.pictures:
        ready = [folder.texts[names.READY]] if names.READY in folder.texts else []
        texts = (*one, *ready)
        plan.orders[folder.path] = Order(
            folder.path, "folder", tuple(folder.pictures), texts, above
        )


def _each(folder: Folder, read: tuple[Entry, ...], plan: Plan) -> None:
    """Each picture of a folder as an edit of its own, with its own sidecars."""
    batch = folder.path[-128:] or None
    stems = [names.key(names.stem(picture.name)) for picture in folder.pictures]
    count = Counter(stems)
    begun: set[str] = set()
    for picture, stem in zip(folder.pictures, stems, strict=True):
        own = tuple(_sidecars(folder, stem))
        if own and stem in begun:
            continue  # pictures that share a sidecar go one after the other, the last with it
        if own and count[stem] > 1:
            begun.add(stem)
            order = Order(picture.path, "file", (picture,), (), (*read, *own), batch)
        else:
            order = Order(picture.path, "file", (picture,), own, read, batch)
        plan.orders[picture.path] = order


def _sidecars(folder: Folder, stem: str) -> Iterator[Entry]:
    for ending in (".txt", ".json"):
        name = stem + ending
        special = name in names.ONE_EDIT or name in names.EACH
        if name in folder.texts and not special:
            yield folder.texts[name]
