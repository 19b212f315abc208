"""One hot folder at work: the way in, the way out, and what is told of both."""

from __future__ import annotations

import asyncio

from vellumd_hotfolder.intake import Intake
from vellumd_hotfolder.outlet import Outlet
from vellumd_hotfolder.reporter import Reporter
from vellumd_hotfolder.site import Site


class HotFolder:
    """The parts of one hot folder, run together."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.outlet = Outlet(site)
        self._reporter = Reporter(site)
        self._intake = Intake(site, self._reporter)

    async def run(self) -> None:
        """Work until cancelled."""
        name = self.site.name
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._intake.run(), name=f"looks at {name}")
                group.create_task(self.outlet.run(), name=f"delivers to {name}")
                group.create_task(self._reporter.run(), name=f"reports in {name}")
        finally:
            self._intake.close()
            self.site.close()
