"""Trading a key for a cookie, so that pages need not keep the key."""

from __future__ import annotations

from aiohttp import web

from vellumd_http.access import Access


class Session:
    """`/v1/session`; the guard has looked at the key before."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def routes(self) -> list[web.RouteDef]:
        """The routes of this part."""
        return [web.post("/v1/session", self.begin), web.delete("/v1/session", self.end)]

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
