"""What the parts of one hot folder share: where it is, what is in work, what is in the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from vellumd_hotfolder import moves, report
from vellumd_hotfolder.claims import Claims
from vellumd_hotfolder.root import Root

if TYPE_CHECKING:
    from vellumd import TransportContext
    from vellumd_hotfolder.plugin import FolderSettings

T = TypeVar("T")

THREADS = 8
AWAY = "The folder is not there; its disk may be away. Nothing is lost: it goes on once it is back."
LINKED = "inbox, outbox, done or failed is a link: results could come back as pictures. Undo that."
FULL = "The disk is full: results wait until there is room."
CLOSED = "vellumd cannot write here: results wait until it can. Give it the right to, or make room."


class Site:
    """One hot folder's state. `on_change` is called when `trouble` has become another.

    `standing` says that the folder is there and what a dead daemon left is in order;
    `in_work` holds the jobs that have a claim. `wake` asks for a look, `changed` for a
    report.
    """

    def __init__(
        self,
        name: str,
        settings: FolderSettings,
        context: TransportContext,
        store: str,
        on_change: Callable[[], None],
    ) -> None:
        assert settings.root is not None
        self.name = name
        self.root = Root(settings.root, store)
        self.settings = settings
        self.context = context
        self.claims = Claims(self.root)
        self.report = report.Report(self.root)
        self.status = report.Status()
        self.standing = False
        self.in_work: set[str] = set()
        self.newest = ""
        self.wake, self.changed = asyncio.Event(), asyncio.Event()
        self.closed_in = self.closed_out = ""
        self._on_change = on_change
        # Threads of its own: a share that hangs holds up nobody else.
        self._threads = ThreadPoolExecutor(THREADS, f"hotfolder-{name}")

    def in_thread(self, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Do blocking work on the folder's disk."""
        return asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def close(self) -> None:
        """Wait for no disk."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def trouble(self) -> str:
        """What keeps this folder from working; empty if nothing does."""
        return self.closed_in or self.closed_out

    async def trouble_of(self, error: OSError) -> str:
        """What stands in the way, as people can mend it; the log has the rest when that is new."""
        if error.errno in moves.NO_ROOM:
            trouble = FULL
        elif await self.in_thread(self.root.links):
            trouble = LINKED
        else:
            trouble = CLOSED if await self.in_thread(self.root.there) else AWAY
        if trouble not in (self.closed_in, self.closed_out):
            self.context.log.info("folder %s: %s", self.name, error)
        return trouble

    def tell(self, closed_in: str | None = None, closed_out: str | None = None) -> None:
        """Note what is in the way of taking and of delivering; empty where nothing is."""
        before = self.trouble
        self.closed_in = self.closed_in if closed_in is None else closed_in
        self.closed_out = self.closed_out if closed_out is None else closed_out
        if self.trouble != before:
            self._on_change()
