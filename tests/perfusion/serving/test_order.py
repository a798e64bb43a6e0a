"""How an order tells of its changes."""

import asyncio

import pytest

from perfusion.serving.order import Order, PictureSpec


def order() -> Order:
    return Order("me", PictureSpec(prompt="a cat"), dialect="own", is_stored=False)


def test_the_drawing_wakes_no_loop_in_which_nobody_waits_for_changes(monkeypatch):
    async def talk() -> list[object]:
        calls: list[object] = []
        unwatched = order()
        monkeypatch.setattr(
            asyncio.get_running_loop(), "call_soon_threadsafe", lambda *call: calls.append(call)
        )
        unwatched.touch()
        return calls

    assert asyncio.run(talk()) == []


def test_who_begins_to_wait_looks_once_more_and_is_then_woken_by_the_next_change():
    async def talk() -> None:
        watched = order()
        watched.touch()  # before anybody waits
        await asyncio.wait_for(watched.change(60), 1)  # returns at once, so that nothing before is missed
        waiting = asyncio.ensure_future(watched.change(60))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.05)
        await asyncio.to_thread(watched.touch)
        await asyncio.wait_for(waiting, 1)

    asyncio.run(talk())


def test_a_change_is_waited_for_no_longer_than_was_said():
    async def talk() -> None:
        watched = order()
        await watched.change(60)
        await asyncio.wait_for(watched.change(0.01), 1)

    asyncio.run(talk())
