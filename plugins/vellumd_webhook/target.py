"""One target: what it is owed goes out side by side, and what fails is put off."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from vellumd import Delivery, TransportContext, errors, sending
from vellumd_webhook import wire
from vellumd_webhook.client import Client, FailedError, GoneError
from vellumd_webhook.plugin import GIVE_UP_S

POSTS = 4
"""Messages on their way to one target at the same time."""
WAITING_MAX = 256
"""Messages in memory that wait for one of these; further ones are put off."""
DOWN_AFTER = 3
"""Failures in a row after which a target counts as down: one lost packet is no news."""
STORE_S = 1.0
"""Seconds until the next post where the store does not take how the last one ended."""


@dataclass(frozen=True)
class Pace:
    """How long a message that failed waits: exponential with full jitter, in seconds.

    So what a target missed comes back spread out when it does, and not in one moment.
    """

    first_s: float = 5.0
    most_s: float = 3600.0
    least_s: float = 1.0

    def pause(self, attempts: int, retry_after: float | None) -> float:
        """Seconds until the attempt after `attempts` failed ones and this; at least what the
        target asked for.
        """
        ceiling = min(self.most_s, self.first_s * 2 ** min(attempts, 30))
        wish = min(retry_after or 0.0, GIVE_UP_S)
        return max(self.least_s, wish, random.uniform(0, ceiling))


class Target:
    """One target by its name in the configuration. `changed` is told when it is well or not."""

    def __init__(
        self,
        name: str,
        host: str,
        client: Client,
        context: TransportContext,
        pace: Pace,
        changed: Callable[[], None],
    ) -> None:
        self._name, self._host = name, host
        self._client = client
        self._context = context
        self._pace = pace
        self._changed = changed
        self._posts = asyncio.Semaphore(POSTS)
        self._waiting = 0
        self._failures = 0
        self._trouble = ""
        self._gone = False

    @property
    def ok(self) -> bool:
        """Whether it takes what it is sent, as far as is known."""
        return not self._trouble

    @property
    def text(self) -> str:
        """How it is; of the URL only the host, since the rest may be a secret."""
        where = f"{self._name} at {self._host}"
        return f"{where} {self._trouble}" if self._trouble else f"tells {where}"

    async def deliver(self, delivery: Delivery) -> None:
        """Post a message now, or put it off; returns when that is on disk."""
        if self._waiting >= WAITING_MAX:
            await delivery.retry(self._pace.pause(delivery.attempts, None))
            return
        self._waiting += 1
        try:
            async with self._posts:
                await sending.finish(self._post(delivery))
        except errors.VellumError as error:  # a store that takes nothing just now
            self._context.log.warning("%s: %s", self._name, error)
            await asyncio.sleep(STORE_S)
        finally:
            self._waiting -= 1

    async def _post(self, delivery: Delivery) -> None:
        job = delivery.job
        try:
            if self._gone:
                raise GoneError("")
            await self._client.post(wire.of_job(job, self._context.link))
        except GoneError:
            self._end()
            await delivery.give_up("gone")
        except FailedError as failure:
            self._failed(failure.text)
            await delivery.retry(self._pace.pause(delivery.attempts, failure.retry_after))
        else:
            self._succeeded()
            await delivery.delivered()

    def _succeeded(self) -> None:
        self._context.count("delivered")
        self._failures = 0
        self._tell("")

    def _failed(self, text: str) -> None:
        self._context.count("failed")
        self._failures += 1
        if self._failures >= DOWN_AFTER and not self._gone:
            self._tell(f"{text}; tried again, each message for a day")

    def _end(self) -> None:
        """Send nothing more before the next start: its owner has to take it out."""
        self._context.count("gone")
        self._gone = True
        self._tell("is gone (410), so it is told nothing before the next start; remove it")

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._changed()
