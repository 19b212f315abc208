"""Presets that people save while the daemon runs: one small file in the data folder.

It is replaced as a whole, so a crash leaves the old or the new one, and it is apart from
the database, so that nothing which happens to that one touches it.
"""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

from vellumd import errors, platform
from vellumd.settings import Preset

log = logging.getLogger("vellumd")

FILE = "presets.json"
"""The file's name in the data folder."""
MOST = 100
"""Presets in the file."""
BYTES = 256 << 10
"""Largest file: `info` shows it whole, and an MQTT broker keeps that."""


class PresetFile:
    """The saved presets of one daemon, by name. Changes are on disk when the call returns.

    Changing blocks; loops do it in a thread.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._changing = threading.Lock()
        self.named = self._read()

    def save(self, name: str, preset: Preset) -> None:
        """Keep `preset` as `name`, in place of what had that name. Raises `PresetsFull`."""
        with self._changing:
            named = {**self.named, name: preset}
            if len(named) > MOST:
                raise errors.PresetsFull(f"{MOST} presets are saved.")
            self._write(named)

    def delete(self, name: str) -> None:
        """Forget a preset; raises `NotFound`."""
        with self._changing:
            if name not in self.named:
                raise errors.NotFound(f"There is no saved preset {name[:64]!r}.")
            self._write({known: kept for known, kept in self.named.items() if known != name})

    def _write(self, named: dict[str, Preset]) -> None:
        shown = {n: p.model_dump(mode="json", exclude_none=True) for n, p in named.items()}
        data = json.dumps({"presets": shown}, ensure_ascii=False, indent=1).encode()
        if len(data) > BYTES:
            raise errors.PresetsFull(f"The saved presets take {BYTES >> 10} KiB in all.")
        try:
            platform.replace_durably(self._file, data)
        except OSError as error:
            raise errors.disk_error(error) from error
        self.named = named

    def _read(self) -> dict[str, Preset]:
        """What the file holds; a damaged one is set aside, since the jobs do not need it.

        Raises `ConfigError` if it may not be read.
        """
        try:
            shown = json.loads(self._file.read_bytes())["presets"]
            return {name: Preset.model_validate(options) for name, options in shown.items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise errors.ConfigError(
                f"{FILE} cannot be read ({error.strerror}). Give it to the daemon's user."
            ) from None
        except (ValueError, TypeError, LookupError, AttributeError, errors.VellumError):
            aside = self._file.with_suffix(".damaged")
            log.exception("%s is damaged; it is kept as %s", FILE, aside.name)
            self._file.replace(aside)
            return {}
