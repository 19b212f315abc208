"""A small client of the daemon's HTTP API, on the standard library alone."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vellumd import announcement
from vellumd.cli import arguments
from vellumd.cli.main import Refused, Unavailable
from vellumd.settings import Settings

if TYPE_CHECKING:
    import ssl

ENDED = ("done", "failed", "cancelled")

PROBE_S = 3
"""Seconds within which a daemon must answer to count as running."""

WAIT_S = 30
"""Seconds of one long poll for a job's end."""

UNAUTHORIZED = 401

Json = dict[str, Any]


def find(settings: Settings, args: argparse.Namespace) -> Client | None:
    """The daemon at `--url`, else the one running on `store.dir`, else None.

    Raises `Unavailable` if the one of `--url` does not answer.
    """
    key = args.key or (read_key(args.key_file) if args.key_file else None)
    if args.url:
        client = Client(args.url, key)
        if not client.alive():
            raise Unavailable(f"No daemon answers at {args.url}. Start it, or correct --url.")
        return client
    return announced(settings, key)


def announced(settings: Settings, key: str | None = None) -> Client | None:
    """The daemon that runs on `store.dir`, as it announces there.

    Without `key`, the one in the file that the daemon names, if this user may read it.
    """
    told = announcement.read(settings.store.dir)
    if told is None:
        return None
    if key is None and told.key_file:
        with contextlib.suppress(OSError, Refused):
            key = read_key(told.key_file)
    client = Client(told.url, key)
    return client if client.alive() else None


def read_key(file: Path) -> str:
    """The key that a file holds; editors of Windows put a mark in front of it.

    Raises `Refused` for a file that holds none.
    """
    try:
        return arguments.key(file.read_text("utf-8-sig").strip())
    except (UnicodeDecodeError, argparse.ArgumentTypeError):
        raise Refused(f"{file}: holds no key: one line of ASCII without spaces.") from None


def require(settings: Settings, args: argparse.Namespace) -> Client:
    """As `find`, but raises `Unavailable` where none runs."""
    if client := find(settings, args):
        return client
    raise Unavailable("No daemon runs on this store.dir. Start `vellumd serve`, or give --url.")


class Client:
    """The HTTP API of one daemon.

    Its calls raise `Refused` with the daemon's reason, `Unavailable` where it is gone.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        # a proxy of the environment is not for a daemon in the house
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if self.url.startswith("https://"):
            handlers.append(urllib.request.HTTPSHandler(context=_tls(self.url)))
        self._opener = urllib.request.build_opener(*handlers)

    def alive(self) -> bool:
        """Whether a daemon answers."""
        try:
            with self._open("GET", "/healthz", timeout=PROBE_S) as answer:
                return int(answer.status) == 200
        except (Unavailable, Refused):
            return False

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Json:
        """The JSON object at `path`."""
        with self._open("GET", path, headers=headers) as answer:
            found: Json = json.load(answer)
            return found

    def post(self, path: str, fields: Json | None = None) -> Json:
        """The JSON answer to `fields` sent to `path`."""
        headers = {"Content-Type": "application/json"}
        with self._open("POST", path, json.dumps(fields or {}).encode(), headers) as answer:
            found: Json = json.load(answer)
            return found

    def delete(self, path: str) -> None:
        """Delete what is at `path`."""
        self._open("DELETE", path).close()

    def upload(self, picture: Path) -> str:
        """Stage a picture and return the reference that jobs name it by.

        A refusal names the picture.
        """
        size = {"Content-Length": str(picture.stat().st_size)}
        headers = {"Content-Type": "application/octet-stream", **size}
        try:
            with (
                picture.open("rb") as file,
                self._open("POST", "/v1/inputs", file, headers) as answer,
            ):
                return f"sha256:{json.load(answer)['sha256']}"
        except Refused as error:
            raise Refused(f"{picture}: {error}") from None

    def result(self, job_id: str, n: int) -> bytes:
        """The bytes of result `n`."""
        with self._open("GET", f"/v1/jobs/{job_id}/result/{n}") as answer:
            return bytes(answer.read())

    def jobs(self, wanted: Mapping[str, str]) -> Iterator[Json]:
        """All jobs that match the filters, newest first."""
        query, cursor = dict(wanted), "first"
        while cursor:
            page = self.get(f"/v1/jobs?{urllib.parse.urlencode(query)}")
            yield from page["jobs"]
            cursor = query["cursor"] = page.get("next") or ""

    def progress(self, job_id: str) -> Iterator[Json]:
        """The progress of a job until it has ended; a lost connection ends it early."""
        headers = {"Accept": "text/event-stream"}
        try:
            with self._open("GET", f"/v1/jobs/{job_id}/events", headers=headers) as stream:
                for kind, event in _events(stream):
                    if kind in ENDED:
                        return
                    if kind == "step":
                        yield event["data"]
        except (Unavailable, OSError, http.client.HTTPException):
            return

    def wait(self, job_id: str) -> Json:
        """The job once it has ended."""
        while True:
            job = self.get(f"/v1/jobs/{job_id}", {"Prefer": f"wait={WAIT_S}"})
            if job["status"] in ENDED:
                return job

    def _open(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 2 * WAIT_S,
    ) -> http.client.HTTPResponse:
        request = urllib.request.Request(  # noqa: S310 - the operator's own address
            self.url + path, body, {**self._headers, **(headers or {})}, method=method
        )
        try:
            answer: http.client.HTTPResponse = self._opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            raise Refused(_reason(error)) from None
        except (OSError, ValueError, http.client.HTTPException):
            raise Unavailable(f"The daemon at {self.url} does not answer.") from None
        return answer


def _tls(url: str) -> ssl.SSLContext:
    """How to trust a daemon; the system's authorities, or those of `SSL_CERT_FILE`, decide.

    On this machine's own loopback a certificate, made for another name, proves nothing
    that the way there does not.
    """
    import ssl  # costs 10 ms, which plain HTTP need not wait for

    context = ssl.create_default_context()
    if urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _reason(error: urllib.error.HTTPError) -> str:
    """What the daemon says is wrong; RFC 9457's detail, else the status."""
    remedy = " Give --key-file FILE." if error.code == UNAUTHORIZED else ""
    with error, contextlib.suppress(ValueError, OSError):
        problem = json.load(error)
        if isinstance(problem, dict) and problem.get("detail"):
            return f"{problem['detail']} ({problem.get('code', error.code)}){remedy}"
    return f"The daemon answered {error.code} {error.reason}."


def _events(stream: http.client.HTTPResponse) -> Iterator[tuple[str, Json]]:
    """The events of a server-sent stream, as type and JSON data."""
    kind, data = "message", ""
    for line in stream:
        field, _, value = line.decode("utf-8").rstrip("\r\n").partition(":")
        if field == "event":
            kind = value.strip()
        elif field == "data":
            data += value
        elif not field and not value and data:
            yield kind, json.loads(data)
            kind, data = "message", ""
