"""What the name of a file says: a picture, a sidecar, litter; and how names are made."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePath

PICTURES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".jpe": "image/jpeg",
    ".jfif": "image/jpeg",
    ".webp": "image/webp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".avif": "image/avif",
    ".bmp": "image/bmp",
    ".heic": "image/heif",
    ".heif": "image/heif",
}
"""Media type by ending, for what is edited; all other files stay where they are."""

ONE_EDIT = ("prompt.txt", "job.json")
"""Files that make the pictures of a sub-folder one edit."""
EACH = ("each.txt", "each.json", "_preset.toml")
"""Files that ask for the same edit of each picture."""
AS_EACH = dict(zip(ONE_EDIT, EACH, strict=False))
"""What the files of one edit are called once a folder has more pictures than one can hold."""
READY = "_ready"
NAME_MAX = 255
"""Most bytes of a file's name on ext4, XFS, APFS and (in UTF-16 units) NTFS."""

_LITTER = re.compile(
    r"""
    \. .* | ~.* | .*~                                   # hidden; editors and Office
    | .*\.(part|partial|filepart|tmp|temp|crdownload|download|opdownload|swp|lock|!ut|bak)
    | .*\.(sync|syncthing|!sync|icloud|dropbox|owncloud|nextcloud) | .*\.sync-conflict-.*
    | thumbs\.db | desktop\.ini | ehthumbs\.db | \$recycle\.bin | system\ volume\ information
    | @eadir | \#recycle | \#snapshot | __macosx | lost\+found
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
"""Files being written under another name, and what sync tools, NAS and systems leave."""


def is_litter(name: str) -> bool:
    """Whether nobody wants this file or folder looked at."""
    return _LITTER.fullmatch(name) is not None


def media_type(name: str) -> str | None:
    """The media type of a picture's name; None for any other file."""
    return PICTURES.get(PurePath(name).suffix.lower())


def key(name: str) -> str:
    """What two spellings of one name share: macOS writes NFD, others NFC, some capitals."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


def stem(name: str) -> str:
    """The name without its ending."""
    return PurePath(name).stem


_DIGITS = re.compile(r"(\d+)")


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts as people do: page 2 before page 10."""
    return [
        (0, int(part), "") if number else (1, 0, part)
        for number, part in ((part.isdecimal(), part) for part in _DIGITS.split(key(name)))
        if part
    ]


def valid(name: str) -> bool:
    """Whether a name is text; others cannot be written into reports and sidecars."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shown(name: str) -> str:
    """A name on one line of text, whatever is in it."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def numbered(name: str, number: int) -> str:
    """`name` for the first file of that name, `name (2)` for the second."""
    return name if number == 1 else suffixed(name, f" ({number})", PurePath(name).suffix)


def suffixed(name: str, addition: str, ending: str) -> str:
    """The stem of `name`, `addition` and `ending`, cut so that a disk takes it."""
    tail = addition + ending
    room = NAME_MAX - len(tail.encode("utf-8"))
    return stem(name).encode("utf-8")[:room].decode("utf-8", "ignore") + tail
