"""Followers of a run get all that lasts, in order, wherever they come in; nobody waits for anybody."""

import asyncio
import gc
import json
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.problem import Refusal
from server.stream import BATCH, HEARTBEAT, RETRY, Streams, frame, replay

RUN = "0" * 32


def streams(limit=10, attempt=1):
    """Streams with one open run, whose passing events are not held back."""
    streams = Streams(limit, pace=0)
    streams.open(RUN, attempt)
    return streams


async def rest(follower):
    """Everything until the stream ends."""
    return b"".join([chunk async for chunk in follower])


def parsed(stream):
    """Events as a browser would see them: id, name, data; without the greeting."""
    events = []
    for block in stream.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        if "event" in fields:
            events.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return events


async def parked(*tasks):
    """Let every task go on until it waits for news."""
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


# Frames


def test_the_frames_of_a_run_are_exactly_these():
    async def run():
        runs = streams(attempt=3)
        runs.publish(RUN, "started", {"nodes": 2})
        runs.publish(RUN, "progress", {"done": 1}, slot="progress:a")
        runs.publish(RUN, "finished", {"title": "Füchse\nim Schnee"})
        follower = runs.follow(RUN)
        runs.close(RUN)
        return [chunk async for chunk in follower]

    assert asyncio.run(run()) == [
        b"retry: 2000\n\n",
        b'id: 3-1\nevent: started\ndata: {"nodes":2}\n\n'
        b'event: progress\ndata: {"done":1}\n\n'
        + 'id: 3-2\nevent: finished\ndata: {"title":"Füchse\\nim Schnee"}\n\n'.encode(),
    ]


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())))
def test_any_data_stands_on_one_line_and_is_read_back(data):
    lines = frame("name", data, "1-1").decode().split("\n")
    assert lines[:2] == ["id: 1-1", "event: name"]
    assert "\r" not in lines[2]
    assert json.loads(lines[2].removeprefix("data: ")) == data
    assert lines[3:] == ["", ""]


def test_a_lone_surrogate_is_sent_as_the_escape_that_it_came_as():
    assert frame("name", {"a": "\ud800"}).endswith(b'{"a":"\\ud800"}\n\n')


def test_what_is_not_json_is_an_error_of_the_publisher():
    runs = streams()
    with pytest.raises(ValueError, match="not JSON compliant"):
        runs.publish(RUN, "seconds", {"value": float("nan")})
    assert runs.log(RUN) == []


def test_a_frame_is_encoded_once_for_all_followers():
    async def run():
        runs = streams()
        followers = [runs.follow(RUN) for _ in range(3)]
        for follower in followers:
            assert await anext(follower) == RETRY
        runs.publish(RUN, "preview", {"png": "x" * 100_000}, slot="preview")
        return {id(await anext(follower)) for follower in followers}

    assert len(asyncio.run(run())) == 1


# Following


def test_a_follower_gets_what_happens_while_it_listens():
    async def run():
        runs = streams()
        follower = runs.follow(RUN)
        assert await anext(follower) == RETRY
        got = []
        for number in range(3):
            task = asyncio.create_task(anext(follower))
            await parked(task)
            runs.publish(RUN, "step", {"number": number})
            got += parsed(await task)
        return got

    assert asyncio.run(run()) == [(f"1-{number + 1}", "step", {"number": number}) for number in range(3)]


def test_silence_is_broken_by_heartbeats():
    async def run():
        follower = streams().follow(RUN, heartbeat=0.001)
        return [await anext(follower) for _ in range(3)]

    assert asyncio.run(run()) == [RETRY, HEARTBEAT, HEARTBEAT]


def test_a_follower_that_came_before_the_end_gets_all_that_is_left():
    async def run():
        runs = streams()
        follower = runs.follow(RUN)
        for number in range(3 * BATCH):
            runs.publish(RUN, "step", {"number": number})
        runs.close(RUN)
        return parsed(await rest(follower))

    assert [data["number"] for _, _, data in asyncio.run(run())] == list(range(3 * BATCH))


def test_a_follower_that_waits_is_told_of_the_end():
    async def run():
        runs = streams()
        task = asyncio.create_task(rest(runs.follow(RUN)))
        await parked(task)
        runs.close(RUN)
        return await task

    assert asyncio.run(run()) == RETRY


def test_a_run_that_is_not_open_cannot_be_followed():
    runs = streams()
    runs.close(RUN)
    with pytest.raises(KeyError):
        runs.follow(RUN)
    with pytest.raises(KeyError):
        runs.log(RUN)


def test_what_comes_after_the_end_is_dropped():
    async def run():
        runs = streams()
        follower = runs.follow(RUN)
        runs.close(RUN)
        runs.publish(RUN, "late", {})
        runs.publish(RUN, "late", {}, slot="late")
        runs.close(RUN)
        return await rest(follower)

    assert asyncio.run(run()) == RETRY


def test_the_log_holds_the_lasting_events_alone():
    async def run():
        runs = streams()
        runs.publish(RUN, "started", {"nodes": 1})
        runs.publish(RUN, "progress", {"done": 1}, slot="progress:a")
        runs.publish(RUN, "finished", {})
        return runs.log(RUN)

    assert asyncio.run(run()) == [("started", {"nodes": 1}), ("finished", {})]


def test_a_thousand_followers_all_get_everything():
    async def run():
        runs = streams(limit=1000)
        tasks = [asyncio.create_task(rest(runs.follow(RUN))) for _ in range(1000)]
        await parked(*tasks)
        for number in range(20):
            runs.publish(RUN, "step", {"number": number})
            if number % 3 == 0:
                await asyncio.sleep(0)
        runs.close(RUN)
        return set(await asyncio.gather(*tasks))

    (stream,) = asyncio.run(run())
    assert parsed(stream) == [(f"1-{number + 1}", "step", {"number": number}) for number in range(20)]


# Passing events


def test_a_slow_reader_gets_only_the_newest_of_each_slot():
    async def run():
        runs = streams()
        follower = runs.follow(RUN)
        assert await anext(follower) == RETRY
        for done in range(100):
            runs.publish(RUN, "progress", {"done": done}, slot="progress:a")
            runs.publish(RUN, "preview", {"done": done}, slot="preview")
        return parsed(await anext(follower))

    assert asyncio.run(run()) == [(None, "progress", {"done": 99}), (None, "preview", {"done": 99})]


def test_readers_that_do_not_read_hold_nothing():
    async def run():
        runs = streams(limit=100)
        followers = [runs.follow(RUN) for _ in range(100)]
        for follower in followers:
            await anext(follower)
        runs.publish(RUN, "preview", {"png": "x" * 100_000}, slot="preview")
        tracemalloc.start()
        for done in range(100):
            runs.publish(RUN, "preview", {"png": "x" * 100_000, "done": done}, slot="preview")
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return held

    assert asyncio.run(run()) < 300_000


def test_events_come_in_the_order_in_which_they_happened():
    async def run():
        runs = streams()
        runs.publish(RUN, "begin", {"node": "a"})
        runs.publish(RUN, "progress", {"node": "a"}, slot="progress:a")
        runs.publish(RUN, "end", {"node": "a"})
        runs.publish(RUN, "progress", {"node": "b"}, slot="progress:b")
        runs.publish(RUN, "end", {"node": "b"})
        follower = runs.follow(RUN)
        runs.close(RUN)
        return [(name, data["node"]) for _, name, data in parsed(await rest(follower))]

    assert asyncio.run(run()) == [("begin", "a"), ("progress", "a"), ("end", "a"), ("progress", "b"), ("end", "b")]


def test_a_slot_that_was_filled_first_is_still_seen_when_it_is_filled_again():
    async def run():
        runs = streams()
        follower = runs.follow(RUN)
        assert await anext(follower) == RETRY
        for slot in ("a", "b"):
            runs.publish(RUN, "progress", {"node": slot}, slot=slot)
        await anext(follower)
        runs.publish(RUN, "progress", {"node": "a again"}, slot="a")
        return parsed(await anext(follower))

    assert asyncio.run(run()) == [(None, "progress", {"node": "a again"})]


def test_passing_events_wait_for_each_other_and_lasting_ones_for_nobody():
    async def run():
        runs = Streams(10, pace=3600)
        runs.open(RUN, 1)
        follower = runs.follow(RUN)
        assert await anext(follower) == RETRY
        task = asyncio.create_task(anext(follower))
        await parked(task)
        runs.publish(RUN, "progress", {"done": 1}, slot="progress:a")
        runs.publish(RUN, "progress", {"done": 2}, slot="progress:a")
        await parked(task)
        runs.publish(RUN, "end", {})
        return parsed(await task)

    assert asyncio.run(run()) == [(None, "progress", {"done": 2}), ("1-1", "end", {})]


def test_passing_events_come_by_themselves_too():
    async def run():
        runs = streams()
        follower = runs.follow(RUN)
        assert await anext(follower) == RETRY
        task = asyncio.create_task(anext(follower))
        await parked(task)
        runs.publish(RUN, "progress", {"done": 1}, slot="progress:a")
        return parsed(await task)

    assert asyncio.run(run()) == [(None, "progress", {"done": 1})]


# Resuming

COUNT = 12


async def published(runs):
    for number in range(COUNT):
        runs.publish(RUN, "step", {"number": number})
        runs.publish(RUN, "progress", {"number": number}, slot="progress")


def numbers(stream):
    return [data["number"] for identifier, _, data in parsed(stream) if identifier]


@given(st.integers(0, COUNT), st.integers(0, COUNT))
def test_resuming_anywhere_gives_the_same_lasting_events(had, published_before):
    async def run():
        runs = streams()
        for number in range(COUNT):
            if number == published_before:
                task = asyncio.create_task(rest(runs.follow(RUN, f"1-{min(had, number)}")))
                await parked(task)
            runs.publish(RUN, "step", {"number": number})
            runs.publish(RUN, "progress", {"number": number}, slot="progress")
        if published_before == COUNT:
            task = asyncio.create_task(rest(runs.follow(RUN, f"1-{had}")))
            await parked(task)
        stored = runs.log(RUN)
        runs.close(RUN)
        return await task, stored

    live, stored = asyncio.run(run())
    assert numbers(live) == list(range(min(had, published_before), COUNT))
    assert numbers(b"".join(replay(stored, 1, f"1-{had}"))) == list(range(had, COUNT))


@pytest.mark.parametrize(
    "after",
    [
        None,
        "",
        "1",
        "1-",
        "-1",
        "1-99",
        "0-3",
        "2-3",
        "1-3-3",
        "1-x",
        " 1-3",
        "1--3",
        "1-3\n",
        "9" * 5000,
        "\u0661-\u0663",
        "\0",
    ],
)
def test_an_id_that_means_nothing_here_gives_everything(after):
    async def run():
        runs = streams()
        await published(runs)
        stored = runs.log(RUN)
        follower = runs.follow(RUN, after)
        runs.close(RUN)
        return await rest(follower), stored

    live, stored = asyncio.run(run())
    assert numbers(live) == numbers(b"".join(replay(stored, 1, after))) == list(range(COUNT))


def test_a_replay_has_the_frames_that_a_follower_got():
    async def run():
        runs = streams(attempt=2)
        runs.publish(RUN, "started", {"nodes": 2})
        runs.publish(RUN, "finished", {"state": "done"})
        stored = runs.log(RUN)
        follower = runs.follow(RUN)
        runs.close(RUN)
        return await rest(follower), stored

    live, stored = asyncio.run(run())
    assert b"".join(replay(stored, 2, None)) == live


def test_another_attempt_begins_anew_and_keeps_its_followers():
    async def run():
        runs = streams(attempt=1)
        await published(runs)
        task = asyncio.create_task(rest(runs.follow(RUN, f"1-{COUNT}")))
        await parked(task)
        runs.open(RUN, 2)
        runs.publish(RUN, "again", {})
        late = runs.follow(RUN, "1-1")
        runs.close(RUN)
        return parsed(await task), parsed(await rest(late))

    follower, late = asyncio.run(run())
    assert follower[-1] == ("2-1", "again", {})
    assert late == [("2-1", "again", {})]


def test_opening_the_same_attempt_again_changes_nothing():
    async def run():
        runs = streams(attempt=1)
        runs.publish(RUN, "queued", {})
        runs.open(RUN, 1)
        return runs.log(RUN)

    assert asyncio.run(run()) == [("queued", {})]


# Who is counted


def test_a_run_is_watched_while_somebody_follows_it():
    async def run():
        runs = streams()
        runs.open("other", 1)
        assert not runs.watched(RUN)
        follower = runs.follow(RUN)
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(runs.watched, RUN).result()
        assert not runs.watched("other")
        assert not runs.watched("unknown")
        await follower.aclose()
        assert not runs.watched(RUN)

    asyncio.run(run())


def test_one_follower_too_many_is_refused_at_once():
    async def run():
        runs = streams(limit=2)
        runs.open("other", 1)
        first, _second = runs.follow(RUN), runs.follow("other")
        with pytest.raises(Refusal, match="All 2 streams") as caught:
            runs.follow(RUN)
        assert caught.value.kind == "too-many-requests"
        await first.aclose()
        assert await anext(runs.follow(RUN)) == RETRY

    asyncio.run(run())


async def cancelled(runs):
    """While it waits for news."""
    task = asyncio.create_task(rest(runs.follow(RUN)))
    await parked(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def dropped(runs):
    """In the middle of the stream."""
    await anext(runs.follow(RUN))


async def never_begun(runs):
    """Before the first frame."""
    runs.follow(RUN)


async def ended(runs):
    """To its end."""
    follower = runs.follow(RUN)
    runs.close(RUN)
    await rest(follower)
    with pytest.raises(StopAsyncIteration):
        await anext(follower)
    runs.open(RUN, 1)


@pytest.mark.parametrize("leave", [cancelled, dropped, never_begun, ended])
def test_a_follower_that_leaves_in_any_way_makes_room(leave):
    async def run():
        runs = streams(limit=1)
        for _ in range(3):
            await leave(runs)
            gc.collect()
            assert not runs.watched(RUN)
        runs.follow(RUN)

    asyncio.run(run())


def test_waiting_leaves_nothing_behind():
    async def run():
        runs = streams()
        follower = runs.follow(RUN, heartbeat=0.001)
        assert [await anext(follower) for _ in range(5)] == [RETRY, *[HEARTBEAT] * 4]
        await cancelled(runs)
        assert not runs._logs[RUN]._waiting

    asyncio.run(run())


class Data(dict):
    """Can be watched going away."""


def test_an_ended_run_is_forgotten_when_its_last_follower_has_gone():
    async def run():
        runs = streams()
        first, second = runs.follow(RUN), runs.follow(RUN)
        data = Data(mark=1)
        seen = weakref.ref(data)
        runs.publish(RUN, "mark", data)
        runs.close(RUN)
        del data
        await rest(first)
        assert seen() is not None
        await rest(second)
        gc.collect()
        assert seen() is None

    asyncio.run(run())
