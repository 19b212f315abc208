"""Presets as resources: what is saved here is there for every door."""

from __future__ import annotations

from aiohttp import web

from vellumd import TransportContext
from vellumd_http import wire
from vellumd_http.body import Bodies

PRESET = "/v1/presets/{name:[^/]+}"


class Presets:
    """The routes under /v1/presets."""

    def __init__(self, context: TransportContext, bodies: Bodies) -> None:
        self._context = context
        self._presets = context.presets
        self._bodies = bodies

    def routes(self) -> list[web.RouteDef]:
        """The routes of this part."""
        return [
            web.get("/v1/presets", self.list),
            web.get(PRESET, self.show),
            web.put(PRESET, self.save),
            web.delete(PRESET, self.delete),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """All presets, and which of them counts where none is named."""
        wire.check_query(request.query, ())
        shown = [preset.public() for preset in self._presets.list()]
        default = self._context.info()["default_preset"]
        return web.json_response({"presets": shown, "default": default})

    async def show(self, request: web.Request) -> web.Response:
        """One preset."""
        return web.json_response(self._presets.get(request.match_info["name"]).public())

    async def save(self, request: web.Request) -> web.Response:
        """Keep the options of the body under the name; 201 where it is a new one."""
        name = request.match_info["name"]
        options = await self._bodies.json(request)
        wire.check_text(options)
        new = all(known.name != name for known in self._presets.list())
        saved = await self._presets.save(name, options)
        return web.json_response(saved.public(), status=201 if new else 200)

    async def delete(self, request: web.Request) -> web.Response:
        """Forget a saved preset."""
        await self._presets.delete(request.match_info["name"])
        return web.Response(status=204)
