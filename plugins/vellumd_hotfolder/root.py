"""Where a hot folder's parts lie, and whether they are there."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from vellumd import errors

PARTS = ("inbox", "outbox", "done", "failed")


@dataclass(frozen=True)
class Root:
    """The folders of one hot folder as one daemon sees them.

    `work` is this daemon's alone, named after its store: another daemon on the same
    folder has its own.
    """

    path: Path
    store: str

    @property
    def inbox(self) -> Path:
        """Where pictures are dropped."""
        return self.path / "inbox"

    @property
    def outbox(self) -> Path:
        """Where results appear."""
        return self.path / "outbox"

    @property
    def done(self) -> Path:
        """Where edited originals go."""
        return self.path / "done"

    @property
    def failed(self) -> Path:
        """Where originals go whose edit failed, each with a NAME.error.txt."""
        return self.path / "failed"

    @property
    def work(self) -> Path:
        """What this daemon has taken: one folder a job."""
        return self.path / ".work" / self.store

    def there(self) -> bool:
        """Whether the folder is mounted, and no loop: an empty mount point lacks its parts."""
        mounted = os.path.isdir(self.inbox) and os.path.isdir(self.work)  # False on a stale share
        return mounted and not self.links()

    def links(self) -> list[str]:
        """Parts that are links: through them results could come back as pictures."""
        return [part for part in PARTS if os.path.islink(self.path / part)]

    def prepare(self, memory: Path) -> None:
        """Make what is missing; raises OSError.

        Only the first time, which `memory` (a folder of the daemon's own) remembers: what
        was there before and is not now is a disk that is away, and nothing is made in its
        stead.
        """
        seen = memory / hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        if not seen.exists() or self.inbox.is_dir():
            for part in PARTS:
                (self.path / part).mkdir(parents=True, exist_ok=True)
            self.work.mkdir(parents=True, exist_ok=True)
            seen.touch()
        if not self.there():
            raise FileNotFoundError("inbox")


def check(roots: dict[str, Path]) -> None:
    """Refuse loops: raises `ConfigError` where one folder's results are another's pictures."""
    if not roots:
        raise errors.ConfigError(
            "plugins.hotfolder has no folder. Set plugins.hotfolder.root = 'DIR'; "
            "`python -m vellumd_hotfolder init DIR` makes one."
        )
    real = {name: path.resolve() for name, path in roots.items()}
    for name, path in real.items():
        for part in Root(path, "").links():
            raise errors.ConfigError(
                f"plugins.hotfolder: {part} of the folder {name!r} is a link. Put a folder "
                f"there: results could come back as pictures."
            )
        for other, above in real.items():
            if other != name and path.is_relative_to(above):
                raise errors.ConfigError(
                    f"plugins.hotfolder: the folder {name!r} lies in {other!r}. Give each a root "
                    f"of its own: one's results would be the other's pictures."
                )
