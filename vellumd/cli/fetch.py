"""`vellumd fetch`: a model from its makers' repository, through huggingface_hub."""

from __future__ import annotations

import argparse
import errno
import fnmatch
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vellumd import platform
from vellumd.cli.main import OK, Refused, load_settings

if TYPE_CHECKING:
    from vellumd.catalogue import Entry, Source
    from vellumd.memory_plan import Sizes
    from vellumd.settings import EngineSettings

GB = 10**9
SPARE = GB
"""Bytes of the disk that a download leaves free."""


@dataclass(frozen=True)
class Wanted:
    """One file of a repository at a fixed commit; `sha256` where the repository tells it."""

    repo: str
    commit: str
    name: str
    size: int
    sha256: str | None
    folder: Path

    @property
    def path(self) -> Path:
        """Where it goes."""
        return self.folder / self.name

    @property
    def there(self) -> bool:
        """Whether it lies there in full: files are only ever renamed to their names."""
        return self.path.is_file() and self.path.stat().st_size == self.size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to fetch, and where to."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="without it: what there is")
    parser.add_argument("--to", type=Path, metavar="DIR", help="folder for it (default: the one "
                        "that engine.model = 'NAME' stands for)")  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="do not ask before the download")


def run(args: argparse.Namespace) -> int:
    """Show size, licence and what is needed; then fetch what is not there yet."""
    engine = load_settings(args).settings.engine
    from vellumd import catalogue

    if args.name is None:
        for name, entry in catalogue.CATALOGUE.items():
            print(f"{name:<22} {entry.about_gb:5.1f} GB  {entry.license}  {entry.title}")
        return OK
    known = catalogue.CATALOGUE.get(args.name)
    if known is None:
        names = ", ".join(catalogue.CATALOGUE)
        raise Refused(f"{args.name[:80]}: there is no such name. There are: {names}.")
    folder = (args.to or catalogue.folder(args.name)).absolute()
    files = [file for source in known.sources for file in _files(source, folder)]
    missing = [file for file in files if not file.there]
    _tell(known, files, missing, folder)
    if known.sizes and missing:
        print(f"  card     {_on_card(known.sizes, engine)}", flush=True)
    if missing:
        _check_room(missing, folder)
        _agree(args.yes)
        _fetch_all(missing, folder)
    print(f"{folder} is whole: {sum(file.size for file in files) / GB:.1f} GB")
    if known.model:
        model = f"'{folder}'" if args.to else args.name
        print(f"start with: vellumd serve --engine.model {model}")
    return OK


def _tell(entry: Entry, files: list[Wanted], missing: list[Wanted], folder: Path) -> None:
    whole, left = (sum(file.size for file in some) / GB for some in (files, missing))
    print(f"{entry.title}\n  licence  {entry.license}\n  folder   {folder}")
    print(f"  size     {whole:.1f} GB in {len(files)} files, {left:.1f} GB of it to fetch")


def _on_card(sizes: Sizes, engine: EngineSettings) -> str:
    """How the model will run on this machine's card."""
    from vellumd import memory_plan
    from vellumd.cli import checks

    try:
        card = checks.torch_says()[1] if platform.nvidia_driver() else None
    except (subprocess.SubprocessError, ValueError, OSError):
        card = None  # doctor tells more
    if card is None:
        return "none that torch can use: the CPU is fit for the demo only (vellumd doctor)"
    vram, ram = (
        there if budget is None else int(budget * GB)
        for budget, there in (
            (engine.vram_budget_gb, card.memory),
            (engine.ram_budget_gb, platform.memory().available),
        )
    )
    plan = memory_plan.plan(sizes, memory_plan.Machine(vram, ram, capability=card.capability))
    return f"{card.name}, {vram / GB:.0f} GB: {'' if plan.fits else 'too small for '}{plan}"


def _files(source: Source, folder: Path) -> Iterator[Wanted]:
    """The files of `source` as its repository lists them now."""
    hub = _hub()
    with _told(source.repo):
        info = hub.HfApi().model_info(source.repo, files_metadata=True)
    found = [
        file
        for file in info.siblings or ()
        if any(fnmatch.fnmatchcase(file.rfilename, glob) for glob in source.files)
    ]
    for glob in source.files:
        if "*" not in glob and not any(file.rfilename == glob for file in found):
            raise Refused(f"{source.repo} has no {glob} any more: vellumd may be too old for it.")
    for file in found:
        sha256 = file.lfs.sha256 if file.lfs else None
        target = folder / source.into
        yield Wanted(
            source.repo, str(info.sha), file.rfilename, int(file.size or 0), sha256, target
        )


def _check_room(missing: list[Wanted], folder: Path) -> None:
    there = next(one for one in (folder, *folder.parents) if one.exists())
    free, needed = shutil.disk_usage(there).free, sum(file.size for file in missing) + SPARE
    if free < needed:
        raise Refused(
            f"{there} has {free / GB:.1f} GB free and {needed / GB:.1f} GB are needed: make room, "
            "or name a folder of another disk with --to."
        )


def _agree(yes: bool) -> None:
    """Ask where somebody can answer; a script has to say --yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refused("Nothing fetched. Say --yes to begin.")
    if input("Fetch it now? [y/N] ").strip().lower() not in ("y", "yes"):
        raise Refused("Nothing fetched.")


def _fetch_all(missing: list[Wanted], folder: Path) -> None:
    """One file after the other, each checked; what is whole stays, whatever comes then."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = platform.lock_folder(folder)
    except platform.LockedError:
        raise Refused(f"Another vellumd fetches into {folder}: wait for it.") from None
    for left in folder.rglob("*.incomplete"):  # of a fetch that was killed; it cannot be used
        left.unlink()
    whole, done = sum(file.size for file in missing) / GB, 0.0
    for number, file in enumerate(missing, start=1):
        print(
            f"{number} of {len(missing)}, {done:.1f} of {whole:.1f} GB: {file.name}",
            file=sys.stderr,
            flush=True,
        )
        _fetch(file)
        done += file.size / GB
    lock.release()


def _fetch(file: Wanted) -> None:
    from vellumd.images import sha256_of

    hub = _hub()
    with _told(file.repo):
        path = Path(
            hub.hf_hub_download(file.repo, file.name, revision=file.commit, local_dir=file.folder)
        )
    if file.sha256 is not None and sha256_of(path) != file.sha256:
        path.unlink()
        raise Refused(f"{file.name} came damaged and was removed. Run the command again.")


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise Refused("Fetching needs the extra engine: pip install 'vellumd[engine]'.") from None
    return huggingface_hub


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """Turn what the hub raises into a sentence with a remedy."""
    from huggingface_hub import errors as hub

    try:
        yield
    except (hub.GatedRepoError, hub.RepositoryNotFoundError):
        raise Refused(
            f"{repo} is not open to everyone: accept its licence there, then set HF_TOKEN to a "
            "token of your account."
        ) from None
    except (hub.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise Refused("The disk is full: make room and run the command again.") from None
        raise Refused(
            f"{repo} cannot be read. What is here stays: run the command again when the network "
            "and the hub answer."
        ) from None
