"""`vellumd edit`: edit pictures with the running daemon, or in this process without one."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vellumd.cli.main import FAILED, OK, Refused, load_settings, tell
from vellumd.cli.progress import Progress

if TYPE_CHECKING:
    from vellumd.cli.client import Client
    from vellumd.settings import Settings

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""Output formats by file ending."""


@dataclass(frozen=True)
class Edit:
    """One edit to make; `out` is the file wanted, or None to name it after picture 1."""

    pictures: list[Path]
    mask: Path | None
    options: dict[str, Any]
    out: Path | None
    folder: Path | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The pictures, the options of an edit, and where the results go."""
    from vellumd.cli import arguments

    parser.add_argument("pictures", nargs="+", type=Path, metavar="IMG", help="pictures to edit")
    parser.add_argument("-p", "--prompt", help="what to change; a preset may hold one")
    parser.add_argument(
        "-o", "--out", type=Path, help="result file; a folder with --each (default: beside IMG)"
    )
    parser.add_argument("--each", action="store_true", help="one edit per picture, not one of all")
    parser.add_argument("--preset", help="named options: fastest, balanced, original or your own")
    parser.add_argument("--negative-prompt", help="what to keep away from")
    parser.add_argument("--steps", type=int, help="denoising steps")
    parser.add_argument("--cfg", type=float, dest="true_cfg_scale", help="guidance scale")
    parser.add_argument("--seed", type=int, help="seed of the first result (default: random)")
    parser.add_argument("--size", help="match, auto, fit:MEGAPIXELS or WIDTHxHEIGHT")
    parser.add_argument("--n", type=int, help="number of results, 1 to 4")
    parser.add_argument("--mask", type=Path, help="picture, white where changes are wanted")
    parser.add_argument("--format", choices=["png", "jpeg", "webp", "same"], help="result format")
    arguments.add_daemon(parser)


def run(args: argparse.Namespace) -> int:
    """Make the edits; `FAILED` if one of them fails."""
    edits = plan(args)
    settings = load_settings(args).settings
    from vellumd.cli import client

    if daemon := client.find(settings, args):
        codes = [_by_daemon(daemon, edit) for edit in edits]
    else:
        codes = asyncio.run(_in_process(settings, edits))
    return max(codes)


def plan(args: argparse.Namespace) -> list[Edit]:
    """The edits that the arguments ask for.

    Raises `Refused` for a missing picture and for a `--out` that cannot be.
    """
    for path in (*args.pictures, *([args.mask] if args.mask else [])):
        if not path.is_file():
            raise Refused(f"There is no picture {str(path)!r}.")
    names = ("prompt", "preset", "negative_prompt", "steps", "true_cfg_scale", "seed", "size", "n")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    groups = [[picture] for picture in args.pictures] if args.each else [args.pictures]
    folder = args.out if args.out and (args.each or args.out.is_dir()) else None
    out = None if folder else args.out
    if folder and folder.exists() and not folder.is_dir():
        raise Refused(f"{folder} is a file. With --each, --out names a folder.")
    if _ending(out) not in ("", *FORMATS) and not args.format:
        raise Refused(f"{out}: results end in {', '.join(FORMATS)}. Name one, or give --format.")
    if wanted := args.format or ("same" if args.each else FORMATS.get(_ending(out))):
        options["output"] = {"format": wanted}
    return [Edit(pictures, args.mask, options, out, folder) for pictures in groups]


def _ending(out: Path | None) -> str:
    return out.suffix.lower() if out else ""


def _by_daemon(daemon: Client, edit: Edit) -> int:
    try:
        images = [daemon.upload(picture) for picture in edit.pictures]
        mask = {"mask": daemon.upload(edit.mask)} if edit.mask else {}
        job = daemon.post("/v1/jobs", {"images": images, **mask, **edit.options})
    except Refused as error:  # the other pictures may be better
        return tell(str(error), FAILED)
    with Progress(f"job {job['id']}") as progress:
        for state in daemon.progress(job["id"]):
            progress.show(state)
        job = daemon.wait(job["id"])
    if job["error"] or job["status"] == "cancelled":
        return _failed(edit, job)
    save(edit, job, (daemon.result(job["id"], result["n"]) for result in job["results"]))
    tell_warnings(job, daemon.get("/v1/capabilities").get("note"))
    return OK


async def _in_process(settings: Settings, edits: list[Edit]) -> list[int]:
    """As `_by_daemon` without one: the engine is loaded once, for all the edits."""
    from vellumd import errors, local, model_card

    note = model_card.of(settings.engine).note
    codes = []
    with Progress("no daemon runs; loading the engine") as progress:

        def show(state: Any) -> None:
            progress.show(state.model_dump())

        async with local.session(settings, show) as engine:
            for edit in edits:
                try:
                    done, files = await engine.edit(edit.pictures, edit.options, mask=edit.mask)
                except errors.VellumError as error:
                    codes.append(tell(f"{error.message} {error.remedy}", FAILED))
                    continue
                finally:
                    progress.end()
                job = done.public()
                if job["error"]:
                    codes.append(_failed(edit, job))
                    continue
                save(edit, job, (file.read_bytes() for file in files))
                tell_warnings(job, note)
                codes.append(OK)
    return codes


def save(edit: Edit, job: Mapping[str, Any], pictures: Iterable[bytes]) -> None:
    """Write the results and print their names, sizes and seeds."""
    from vellumd.models import SUFFIXES

    several = len(job["results"]) > 1
    for result, data in zip(job["results"], pictures, strict=True):
        file = target(edit, SUFFIXES[result["type"]], result["n"] if several else None)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        print(f"{file}  {result['width']}x{result['height']}  seed {result['seed']}")


def tell_warnings(job: Mapping[str, Any], model_note: str | None) -> None:
    """Print what has to be said about a result; of a demo also what it can do."""
    for warning in job["warnings"]:
        note = f" ({model_note})" if warning["code"] == "demo_model" and model_note else ""
        print(f"note: {warning['message']}{note}")


def target(edit: Edit, ending: str, n: int | None) -> Path:
    """Where a result goes: `--out` as given, else a free name after picture 1."""
    number = f"_{n}" if n else ""
    if edit.out:
        return edit.out.with_name(f"{edit.out.stem}{number}{edit.out.suffix or '.' + ending}")
    first = edit.pictures[0]
    folder = edit.folder or first.parent
    stem = first.stem if edit.folder else f"{first.stem}-edited"
    file = folder / f"{stem}{number}.{ending}"
    copy = 2
    while file.exists():
        file = folder / f"{stem}{number} ({copy}).{ending}"
        copy += 1
    return file


def _failed(edit: Edit, job: Mapping[str, Any]) -> int:
    why = job["error"]["message"] if job["error"] else "The job was cancelled."
    return tell(f"{edit.pictures[0]}: {why}", FAILED)
