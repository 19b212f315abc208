"""How errors leave: in the words of their route, with the headers that every answer has."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from vellumd import errors
from vellumd_http import openai_wire, wire

HEADERS = {
    "Server": "vellumd",
    "X-Content-Type-Options": "nosniff",
    # Under no-referrer, browsers send the forms of our own page with `Origin: null`.
    "Referrer-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}
"""On every answer, unless its route says otherwise; so even a picture cannot run."""

LEGACY_PATHS = ("/generate", "/health")
"""Routes that tell errors as the predecessor did."""


def add_headers(answer: web.StreamResponse) -> None:
    """Give an answer those of `HEADERS` that it has not."""
    answer.headers["Server"] = HEADERS["Server"]
    for name, value in HEADERS.items():
        answer.headers.setdefault(name, value)


def of_error(
    path: str,
    error: errors.VellumError,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """The answer that tells `error` to who asked for `path`."""
    own = {}
    if path in LEGACY_PATHS:
        shown, type = wire.legacy_error(error), "application/json"
    elif openai_wire.is_path(path):
        shown, type = openai_wire.public_error(error), "application/json"
        status = status or openai_wire.status_of(error)
        own = {} if error.retryable else {"x-should-retry": "false"}
    else:
        shown, type = wire.problem(error, status), "application/problem+json"
    answer = web.json_response(
        shown,
        status=status or error.status,
        headers={**(headers or {}), **wire.error_headers(error), **own},
        content_type=type,
    )
    add_headers(answer)
    return answer


def of_router(method: str, found: web.HTTPException) -> errors.VellumError:
    """What aiohttp's router means by 404 and 405."""
    if found.status == 404:
        return errors.NotFound("There is nothing under this address.")
    return errors.BadRequest(f"{method[:20]}: this address does not take it.")
