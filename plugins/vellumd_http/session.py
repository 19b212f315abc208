"""Trading a key or a code for a cookie, so that pages need not keep the key."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from vellumd import errors
from vellumd_http.access import Access
from vellumd_http.codes import LIFE_S, Codes

CODE_PATH = "/v1/session/code"
"""Where codes are made, and with PUT traded."""


class Session:
    """`/v1/session`; the guard has looked at the key before.

    `address` tells for a request the URL under which other machines reach this door,
    None where they do not.
    """

    def __init__(self, access: Access, address: Callable[[web.Request], str | None]) -> None:
        self._access = access
        self._address = address
        self._codes = Codes()

    def routes(self) -> list[web.RouteDef]:
        """The routes of this part."""
        return [
            web.post("/v1/session", self.begin),
            web.delete("/v1/session", self.end),
            web.post(CODE_PATH, self.invite),
            web.put(CODE_PATH, self.enter),
        ]

    async def begin(self, request: web.Request) -> web.Response:
        """Set the cookie for the key in Authorization; without a key there is none."""
        answer = web.Response(status=204)
        self._access.remember(request, answer)
        return answer

    async def end(self, request: web.Request) -> web.Response:
        """Drop the cookie."""
        answer = web.Response(status=204)
        self._access.forget(answer)
        return answer

    async def invite(self, request: web.Request) -> web.Response:
        """A code for another browser; null where the asker showed no key and so needs none."""
        owner = self._access.owner(request)
        code = None if owner is None else self._codes.make(owner)
        expires_s = LIFE_S if code else None
        told = {"code": code, "expires_s": expires_s, "address": self._address(request)}
        return web.json_response(told, headers={"Cache-Control": "no-store"})

    async def enter(self, request: web.Request) -> web.Response:
        """Set the cookie for the code in Authorization, which is used up by that."""
        owner = self._codes.take(self._access.shown(request))
        answer = web.Response(status=204)
        if owner is None or not self._access.admit(request, answer, owner):
            raise errors.Unauthorized("This code opens nothing: it is old, or was used before.")
        return answer
