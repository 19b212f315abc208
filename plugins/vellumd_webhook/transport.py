"""The door: follows all others, and hands what has ended to its targets."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing

from vellumd import Delivery, JobFilter, TransportContext, errors
from vellumd_webhook.client import TIMEOUT_S, open_client
from vellumd_webhook.plugin import WebhookSettings
from vellumd_webhook.target import POSTS, Pace, Target

UNKNOWN_S = 3600.0
"""Seconds until a message is looked at again whose target is not configured any more."""


class WebhookTransport:
    """Tells targets how jobs ended. Raises `ConfigError` for a source that is no door."""

    def __init__(
        self,
        context: TransportContext,
        pace: Pace | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._context = context
        self._settings: WebhookSettings = context.settings
        self._pace = pace or Pace()
        self._timeout_s = timeout_s
        self._targets: dict[str, Target] = {}
        self._missed: set[str] = set()
        for event in ("delivered", "failed", "gone"):
            context.count(event, 0)
        self._follow()

    def _follow(self) -> None:
        doors = self._context.info()["transports"]
        for name, target in self._settings.targets.items():
            for source in target.sources or (None,):
                if source not in (None, *doors):
                    raise errors.ConfigError(
                        f"plugins.webhook.targets.{name}.sources: there is no door {source!r}; "
                        f"there is {', '.join(sorted(doors))}. Correct it, or enable that door."
                    )
                self._context.follow(JobFilter(source=source), reply={"target": name})

    async def run(self) -> None:
        """Work until cancelled; what is on its way then gets a moment to arrive."""
        async with AsyncExitStack() as clients, asyncio.TaskGroup() as tasks:
            for name, target in self._settings.targets.items():
                client = await clients.enter_async_context(
                    open_client(target, POSTS, self._timeout_s)
                )
                self._targets[name] = Target(
                    name, target.host, client, self._context, self._pace, self._report
                )
            self._report()
            async with aclosing(self._context.deliveries()) as deliveries:
                async for delivery in deliveries:
                    tasks.create_task(self._deliver(delivery), name=f"webhook {delivery.job.id}")

    async def _deliver(self, delivery: Delivery) -> None:
        name = delivery.reply["target"]
        if target := self._targets.get(name):
            await target.deliver(delivery)
            return
        if name not in self._missed:
            self._missed.add(name)
            self._context.log.warning("%r is owed messages, but configured no more", name)
        await delivery.retry(UNKNOWN_S)

    def _report(self) -> None:
        """One sentence about all targets; it changes, and is logged, when one of them does."""
        targets = self._targets.values()
        self._context.report(all(t.ok for t in targets), "; ".join(t.text for t in targets))
