"""Events: whoever listens misses nothing durable, repeats nothing, and slows nobody."""

from __future__ import annotations

import asyncio

from vellumd.events import BACKLOG, EventBus
from vellumd.models import JobEvent, moment


def event(seq: int | None, job: str = "a", type: str = "started", **data: object) -> JobEvent:
    return JobEvent.model_validate(
        {"job_id": job, "type": type, "at": moment(0), "seq": seq, "data": data}
    )


async def test_durable_events_keep_their_order() -> None:
    """What was published while nobody waited is handed over one by one."""
    bus = EventBus()
    with bus.listen() as listener:
        listener.caught_up()
        bus.publish([event(1), event(2)])
        bus.publish([event(3)])
        assert [(await listener.next()).seq for _ in range(3)] == [1, 2, 3]  # type: ignore[union-attr]


async def test_of_live_events_the_newest_is_kept() -> None:
    """A slow reader of steps sees the last one, after all durable ones."""
    bus = EventBus()
    with bus.listen() as listener:
        listener.caught_up()
        bus.publish([event(None, type="step", step=k) for k in range(1000)])
        bus.publish([event(1)])
        first, second = await listener.next(), await listener.next()
        assert first and first.seq == 1
        assert second and second.data == {"step": 999}


async def test_a_listener_far_behind_is_sent_to_the_store() -> None:
    """Beyond the backlog nothing is kept for it; it is told to read the store."""
    bus = EventBus()
    with bus.listen() as listener:
        listener.caught_up()
        bus.publish([event(n) for n in range(1, BACKLOG + 10)])
        assert listener.behind
        seen = [await listener.next() for _ in range(BACKLOG + 1)]
        assert seen[-1] is None


async def test_what_is_kept_has_no_gap() -> None:
    """Once something was dropped, what comes after is dropped too, until the store is read."""
    bus = EventBus()
    with bus.listen() as listener:
        listener.caught_up()
        bus.publish([event(n) for n in range(1, BACKLOG + 2)])
        seen = [await listener.next()]
        bus.publish([event(BACKLOG + 2)])
        seen += [await listener.next() for _ in range(BACKLOG - 1)]
        assert [one.seq for one in seen if one] == list(range(1, BACKLOG + 1))
        assert await listener.next() is None


async def test_only_the_own_job_and_wanted_previews() -> None:
    """A listener of one job hears no other; previews come only to those who asked."""
    bus = EventBus()
    with bus.listen("a") as own, bus.listen("a", previews=True) as looking:
        own.caught_up()
        looking.caught_up()
        bus.publish([event(1, "b"), event(None, "a", "preview"), event(2, "a")])
        heard = await own.next()
        assert heard and heard.seq == 2
        kinds = {(await looking.next()).type for _ in range(2)}  # type: ignore[union-attr]
        assert kinds == {"started", "preview"}


async def test_previews_are_switched_by_the_first_and_the_last() -> None:
    """The engine is asked for previews exactly while at least one listener wants them."""
    bus, asked = EventBus(), []
    bus.on_previews = asked.append
    with bus.listen(previews=True), bus.listen(previews=True), bus.listen():
        assert asked == [True]
    assert asked == [True, False]


async def test_a_waiting_listener_is_woken() -> None:
    """next() returns once something comes."""
    bus = EventBus()
    with bus.listen() as listener:
        listener.caught_up()
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(listener.next())
            await asyncio.sleep(0)
            bus.publish([event(1)])
        assert waiting.result() == event(1)


async def test_a_listener_may_leave_while_events_are_handed_out() -> None:
    """An observer that ends a listener, as garbage collection can, breaks nothing."""
    bus = EventBus()
    listening = bus.listen()
    listener = listening.__enter__()
    bus.observers.append(lambda event: listening.__exit__(None, None, None))
    with bus.listen() as other:
        other.caught_up()
        bus.publish([event(1)])
        bus.observers.clear()
        assert (await other.next()) == event(1)
    assert listener


async def test_a_crowd_is_woken_in_turns() -> None:
    """All of many listeners hear of an event, and others' work comes between them."""
    bus = EventBus()
    heard = 0

    async def listen() -> None:
        nonlocal heard
        with bus.listen() as listener:
            listener.caught_up()
            await listener.next()
            heard += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(100):
            tasks.create_task(listen())
        await asyncio.sleep(0)
        bus.publish([event(1)])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert 0 < heard < 100
    assert heard == 100
