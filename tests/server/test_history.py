import hashlib
import json
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import wait
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from server.history import (
    Accepted,
    BadCursor,
    Blob,
    BlobMissing,
    Finished,
    History,
    HistoryError,
    IdempotencyConflict,
    Receipt,
    State,
    StorageFull,
)

ROOT = Path(__file__).parents[2]
DAY = 86_400.0
BODY = hashlib.sha256(b"body").digest()
DONE = Finished(State.DONE, 20.0, 1.5, '{"image": "..."}', report='{"seconds": 1.5}', events="[]")


def accepted(number, **changes):
    run = Accepted(f"{number:032x}", "local", f"run {number}", '{"nodes": {}}', None, 0, float(number))
    return replace(run, **changes)


def blob(name, **changes):
    digest = hashlib.sha256(name.encode()).hexdigest()
    return replace(Blob(digest, 100, "image/png", 8, 8, made=0.0, used=0.0, upload=False), **changes)


@pytest.fixture
def history(tmp_path):
    history = History(tmp_path / "service.sqlite", clock=lambda: 10.0)
    yield history
    history.close()


@pytest.fixture
def other(tmp_path):
    """A connection of somebody who looks into the file."""
    connection = sqlite3.connect(tmp_path / "service.sqlite")
    yield connection
    connection.close()


def ended(history, number, finished=DONE, **changes):
    run = accepted(number, **changes)
    history.record(run, finished).result()
    return run.id


# What is told is kept


def test_an_accepted_run_is_queued_with_everything_it_came_with(history):
    run = accepted(1, title="Fuchs 🦊", outputs=("image",), priority=3, labels={"set": "a"}, webhook="http://h/")
    assert history.accept(run).result() == Receipt(run.id, known=False, rank=1.0)
    kept = history.run(run.id)
    assert (kept.id, kept.client, kept.title, kept.requested) == (run.id, "local", "Fuchs 🦊", ("image",))
    assert (kept.priority, kept.rank, kept.submitted, kept.labels) == (3, 1.0, 1.0, {"set": "a"})
    assert (kept.state, kept.attempts, kept.started, kept.finished) == (State.QUEUED, 0, None, None)
    assert (kept.webhook, kept.outputs, kept.problems) == ("http://h/", None, None)
    assert history.graph_of(run.id) == history.document(kept.document) == run.document
    assert kept.document == hashlib.sha256(run.document.encode()).digest()


def test_a_run_that_is_finished_as_it_comes_is_recorded_at_once(history):
    run = accepted(1)
    history.record(run, DONE).result()
    kept = history.run(run.id)
    assert (kept.state, kept.started, kept.finished, kept.seconds) == (State.DONE, 1.0, 20.0, 1.5)
    assert kept.outputs == DONE.outputs
    assert (history.report_of(run.id), history.events_of(run.id)) == (DONE.report, DONE.events)
    assert history.queued() == []


def test_unknown_names_have_nothing(history):
    assert history.run("f" * 32) is None
    assert history.graph_of("f" * 32) is None
    assert history.document(b"nothing") is None
    assert history.blob("f" * 64) is None
    assert history.cancel("f" * 32).result() is None
    assert history.finish("f" * 32, DONE).result() is False


def test_a_run_goes_from_queued_to_running_to_done(history):
    run = accepted(1)
    history.accept(run).result()
    assert history.start([run.id]).result() == (run.id,)
    kept = history.run(run.id)
    assert (kept.state, kept.attempts, kept.started) == (State.RUNNING, 1, 10.0)
    assert history.finish(run.id, DONE).result() is True
    assert history.run(run.id).state is State.DONE
    assert history.counts() == {**dict.fromkeys(State, 0), State.DONE: 1}


def test_a_run_is_finished_once_however_many_threads_try(history):
    run = accepted(1, webhook="http://h/")
    history.accept(run)
    history.start([run.id]).result()
    results, ready = [], threading.Barrier(8)

    def finish(seconds):
        ready.wait()
        results.append(history.finish(run.id, replace(DONE, seconds=seconds)).result())

    threads = [threading.Thread(target=finish, args=(float(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 7 + [True]
    assert len(history.due(100.0, 10)) == 1


def test_cancelling_takes_a_queued_run_out_and_leaves_all_others_as_they_are(history):
    waiting, running, done = accepted(1), accepted(2), accepted(3)
    history.accept(waiting)
    history.accept(running)
    history.start([running.id])
    history.record(done, DONE)
    assert history.cancel(waiting.id).result() is State.CANCELLED
    assert history.cancel(running.id).result() is State.RUNNING
    assert history.cancel(done.id).result() is State.DONE
    assert history.run(waiting.id).finished == 10.0
    assert history.start([waiting.id, running.id]).result() == ()


def test_a_requeued_run_waits_and_its_next_start_is_another_attempt(history):
    run = accepted(1)
    history.accept(run)
    history.start([run.id])
    assert history.requeue([run.id]).result() == (run.id,)
    kept = history.run(run.id)
    assert (kept.state, kept.attempts, kept.started) == (State.QUEUED, 1, None)
    history.start([run.id]).result()
    assert history.run(run.id).attempts == 2


def test_stops_do_not_use_up_the_attempts_of_a_run(history):
    run = accepted(1)
    history.accept(run)
    for _ in range(5):
        history.start([run.id])
        history.requeue([run.id])
    history.start([run.id])
    assert history.recover(2, 0.0).result().requeued == (run.id,)
    history.start([run.id])
    assert history.recover(2, 0.0).result().failed == (run.id,)


def test_after_a_crash_runs_wait_again_until_their_attempts_are_spent(history):
    fresh, spent = accepted(1), accepted(2, webhook="http://h/")
    history.accept(fresh)
    history.accept(spent)
    for _ in range(2):
        history.start([spent.id])
        assert history.recover(3, 50.0).result().requeued == (spent.id,)
    history.start([fresh.id, spent.id])
    recovered = history.recover(3, 50.0).result()
    assert (recovered.requeued, recovered.failed) == ((fresh.id,), (spent.id,))
    assert history.run(fresh.id).attempts == 1
    failed = history.run(spent.id)
    assert (failed.state, failed.finished) == (State.FAILED, 50.0)
    (problem,) = json.loads(failed.problems)
    assert problem["code"] == "attempts"
    assert "3 times" in problem["message"]
    assert [delivery.run for delivery in history.due(50.0, 10)] == [spent.id]


def test_the_queue_is_read_by_priority_then_by_rank(history):
    for number, priority in [(1, 0), (2, 0), (3, 5), (4, 0)]:
        history.accept(accepted(number, priority=priority))
    assert history.move(accepted(4).id, rank=0.5).result() is True
    assert history.move(accepted(2).id, priority=9).result() is True
    order = [(int(run.id, 16), run.priority, run.rank) for run in history.queued()]
    assert order == [(2, 9, 2.0), (3, 5, 3.0), (4, 0, 0.5), (1, 0, 1.0)]


def test_only_a_queued_run_can_be_moved(history):
    assert history.move(ended(history, 1), rank=0.0).result() is False


def test_pausing_outlives_the_process(tmp_path):
    for paused in (True, False):
        history = History(tmp_path / "service.sqlite")
        history.pause(paused).result()
        history.close()
        again = History(tmp_path / "service.sqlite")
        assert again.paused is paused
        again.close()


# Idempotency-Keys


def test_a_key_that_comes_again_with_the_same_body_gives_the_earlier_run(history):
    first = history.accept(accepted(1, key=("k", BODY))).result()
    again = history.accept(accepted(2, key=("k", BODY))).result()
    assert again == replace(first, known=True)
    assert history.run(accepted(2).id) is None
    assert history.record(accepted(3, key=("k", BODY)), DONE).result() == again


def test_a_key_that_comes_again_with_another_body_is_refused(history):
    history.accept(accepted(1, key=("k", BODY))).result()
    with pytest.raises(IdempotencyConflict, match="send another key"):
        history.accept(accepted(2, key=("k", b"other"))).result()
    assert [int(run.id, 16) for run in history.queued()] == [1]


def test_a_key_is_its_clients_own(history):
    history.accept(accepted(1, key=("k", BODY))).result()
    assert not history.accept(accepted(2, key=("k", BODY), client="eve")).result().known


def test_a_key_is_forgotten_after_a_day(history):
    history.accept(accepted(1, key=("k", BODY))).result()
    assert history.accept(accepted(2, key=("k", BODY), submitted=1.0 + DAY - 1)).result().known
    assert not history.accept(accepted(3, key=("k", b"other"), submitted=1.0 + DAY)).result().known
    assert history.accept(accepted(4, key=("k", b"other"), submitted=2.0 + DAY)).result().id == accepted(3).id


def test_the_same_key_many_times_at_once_makes_one_run(history):
    receipts = [history.accept(accepted(number, key=("k", BODY))) for number in range(1, 51)]
    assert {receipt.result().id for receipt in receipts} == {accepted(1).id}
    assert [receipt.result().known for receipt in receipts] == [False] + [True] * 49


def test_a_refused_submission_spoils_nothing_for_those_around_it(history):
    held = hold(history)
    good, twice = history.accept(accepted(1)), history.accept(accepted(1))
    conflict = (history.accept(accepted(2, key=("k", BODY))), history.accept(accepted(3, key=("k", b"other"))))
    unwritable = history.accept(accepted(4, title="\ud800", document="its own"))
    last = history.record(accepted(5, document="its own"), DONE)
    held.set()
    assert (good.result().id, last.result().id) == (accepted(1).id, accepted(5).id)
    with pytest.raises(HistoryError, match="there already"):
        twice.result()
    assert conflict[0].result().id == accepted(2).id
    assert isinstance(conflict[1].exception(), IdempotencyConflict)
    assert isinstance(unwritable.exception(), UnicodeEncodeError)
    assert {int(run.id, 16) for run in history.page().runs} == {1, 2, 5}
    assert history.graph_of(accepted(5).id) == "its own"


def test_a_refused_submission_leaves_none_of_its_texts_behind(history, other):
    history.accept(accepted(1)).result()
    with pytest.raises(HistoryError, match="use an id of its own"):
        history.accept(accepted(1, document="new")).result()
    assert other.execute("SELECT text FROM texts").fetchall() == [(accepted(1).document,)]
    history.accept(accepted(2, document="new")).result()
    assert history.graph_of(accepted(2).id) == "new"


def hold(history):
    """Keep the writer busy until the event is set, so that what follows is one batch."""
    held, busy = threading.Event(), threading.Event()

    def operation(connection):
        busy.set()
        held.wait()

    history._ledger.write(operation)
    busy.wait()
    return held


# Pages


def test_pages_go_from_the_newest_to_the_oldest(history):
    for number in range(1, 8):
        history.accept(accepted(number)).result()
    assert pages(history, limit=3) == [[7, 6, 5], [4, 3, 2], [1]]
    assert pages(history, limit=7) == [[7, 6, 5, 4, 3, 2, 1]]


def test_runs_that_come_in_between_two_pages_move_nothing(history):
    for number in range(1, 7):
        history.accept(accepted(number)).result()
    first = history.page(limit=3)
    for number in range(7, 12):
        history.accept(accepted(number)).result()
    second = history.page(limit=3, after=first.after)
    assert [int(run.id, 16) for run in first.runs + second.runs] == [6, 5, 4, 3, 2, 1]
    assert second.after is None


def test_pages_are_of_one_state_and_one_client(history):
    for number in range(1, 7):
        history.accept(accepted(number, client="eve" if number % 2 else "bob"))
    history.cancel(accepted(1).id)
    history.cancel(accepted(2).id).result()
    assert pages(history, state=State.CANCELLED) == [[2, 1]]
    assert pages(history, client="eve", limit=2) == [[5, 3], [1]]
    assert pages(history, client="eve", state=State.QUEUED) == [[5, 3]]
    assert pages(history, client="nobody") == [[]]


@pytest.mark.parametrize(
    "cursor", ["", "0", "MQ==", "____________", "////////////", "é", "MQAAAAAAAAAA=", "1 OR 1", "Mv________8="]
)
def test_a_cursor_that_no_page_gave_is_refused(history, cursor):
    with pytest.raises(BadCursor, match="start without one"):
        history.page(after=cursor)


def pages(history, **choice):
    page = history.page(**choice)
    found = [[int(run.id, 16) for run in page.runs]]
    while page.after:
        page = history.page(after=page.after, **choice)
        found.append([int(run.id, 16) for run in page.runs])
    return found


# Texts, blobs and what is forgotten


def test_a_text_is_stored_once_however_many_runs_repeat_it(history, other):
    for number in range(1, 30):
        ended(history, number)
    assert other.execute("SELECT COUNT(*) FROM texts").fetchone() == (4,)


def test_pruning_keeps_the_newest_and_those_young_enough(history):
    for number in range(1, 8):
        ended(history, number, replace(DONE, finished=number * DAY))
    assert history.prune(8 * DAY, runs=5, days=100).result() == 2
    assert pages(history) == [[7, 6, 5, 4, 3]]
    assert history.prune(8 * DAY, runs=5, days=3.5).result() == 2
    assert pages(history) == [[7, 6, 5]]
    assert history.prune(8 * DAY, runs=5, days=3.5).result() == 0


def test_pruning_keeps_what_waits_runs_or_owes_a_webhook_call(history):
    history.accept(accepted(1))
    history.accept(accepted(2))
    history.start([accepted(2).id])
    owing = ended(history, 3, webhook="http://h/")
    ended(history, 4)
    assert history.prune(1000 * DAY, runs=0, days=0).result() == 1
    assert pages(history) == [[3, 2, 1]]
    history.delivered(owing)
    assert history.prune(1000 * DAY, runs=0, days=0).result() == 1
    assert history.graph_of(accepted(1).id) == accepted(1).document


def test_pruning_goes_in_pieces_between_which_others_write(history):
    for number in range(1, 1001):
        history.record(accepted(number), DONE)
    pruned = history.prune(1000 * DAY, runs=0, days=0)
    history.accept(accepted(2000)).result()
    assert not pruned.done()
    assert pruned.result() == 1000
    assert pages(history) == [[2000]]


def test_pruning_deletes_texts_that_nothing_refers_to_and_no_others(history, other):
    history.accept(accepted(1, document='{"shared": 1}'))
    ended(history, 2, document='{"shared": 1}')
    ended(history, 3, replace(DONE, report='{"own": 3}'), document='{"own": 3}')
    history.prune(1000 * DAY, runs=0, days=0).result()
    assert other.execute("SELECT text FROM texts").fetchall() == [('{"shared": 1}',)]
    ended(history, 4, replace(DONE, report='{"own": 3}'))
    assert history.report_of(accepted(4).id) == '{"own": 3}'


def test_a_key_goes_with_its_run(history):
    ended(history, 1, key=("k", BODY))
    history.prune(1000 * DAY, runs=0, days=0).result()
    assert not history.accept(accepted(2, key=("k", BODY))).result().known


def test_a_blob_is_in_the_index_once(history):
    assert history.add_blob(blob("a", used=5.0)).result() is True
    assert history.add_blob(blob("a", used=7.0, upload=True)).result() is False
    assert history.blob(blob("a").digest) == blob("a", used=7.0, upload=True)
    assert history.use_blob(blob("a").digest).result() is True
    assert history.blob(blob("a").digest).used == 10.0
    assert history.use_blob(blob("b").digest).result() is False
    assert history.blob_bytes() == 100


def test_a_run_cannot_refer_to_a_blob_that_is_not_there(history):
    history.add_blob(blob("a"))
    missing = blob("b").digest
    with pytest.raises(BlobMissing, match="upload them again") as refused:
        history.accept(accepted(1, blobs=(blob("a").digest, missing))).result()
    assert refused.value.digests == (missing,)
    with pytest.raises(BlobMissing):
        history.record(accepted(2), DONE, [missing]).result()
    assert pages(history) == [[]]


def test_unused_blobs_expire_but_not_those_that_runs_refer_to(history):
    for name in ("upload", "result", "loose"):
        history.add_blob(blob(name))
    history.accept(accepted(1, blobs=(blob("upload").digest,)))
    ended(history, 2)
    history.record(accepted(3), DONE, [blob("result").digest])
    history.start([accepted(1).id])
    history.finish(accepted(1).id, DONE, [blob("made").digest], [blob("made")]).result()
    assert history.expire(100 * 3600.0, hours=24, quota=1 << 30).result() == [blob("loose").digest]
    assert history.expire(100 * 3600.0, hours=24, quota=0).result() == []
    assert history.blob_bytes() == 300
    history.prune(1000 * DAY, runs=0, days=0).result()
    assert len(history.expire(2000 * DAY, hours=24, quota=1 << 30).result()) == 3


def test_an_upload_has_its_time_again_when_the_last_run_that_needs_it_is_forgotten(history):
    history.add_blob(blob("upload", upload=True))
    history.record(accepted(1, blobs=(blob("upload").digest,)), DONE)
    history.prune(5 * DAY, runs=0, days=0).result()
    assert history.expire(5 * DAY + 3600, hours=24, quota=1 << 30).result() == []
    assert history.expire(7 * DAY, hours=24, quota=1 << 30).result() == [blob("upload").digest]


def test_over_quota_the_least_recently_used_blobs_go_and_no_more_than_needed(history):
    for used in (3, 1, 2, 4):
        history.add_blob(blob(str(used), used=used * 3600.0))
    gone = history.expire(5 * 3600.0, hours=24, quota=200).result()
    assert gone == [blob("1").digest, blob("2").digest]


def test_a_forgotten_blob_is_missed_by_the_next_run_that_needs_it(history):
    history.add_blob(blob("a"))
    history.accept(accepted(1, blobs=(blob("a").digest,))).result()
    assert history.forget_blob(blob("a").digest).result() is True
    with pytest.raises(BlobMissing):
        history.accept(accepted(2, blobs=(blob("a").digest,))).result()


# Webhook calls


def test_a_webhook_call_is_due_when_its_run_ends_and_until_it_arrives(history):
    run = accepted(1, webhook="http://h/")
    history.accept(run).result()
    assert history.due(1e9, 10) == []
    history.cancel(run.id).result()
    (owed,) = history.due(10.0, 10)
    assert (owed.id, owed.run, owed.url, owed.tries) == (run.id, run.id, "http://h/", 0)
    history.retry(owed.id, 60.0, "500 Internal Server Error").result()
    assert history.due(59.0, 10) == []
    assert history.due(60.0, 10) == [replace(owed, tries=1, next=60.0, error="500 Internal Server Error")]
    assert history.delivered(owed.id).result() is True
    assert history.due(1e9, 10) == []
    assert history.give_up(owed.id).result() is False


# Durability


def test_a_future_resolves_only_when_the_run_is_in_the_file(history, other):
    found = []
    for number in range(1, 6):
        history.accept(accepted(number)).result()
        found += other.execute("SELECT COUNT(*) FROM runs").fetchone()
    assert found == [1, 2, 3, 4, 5]


def test_every_commit_waits_for_the_disk(history):
    pragmas = [history._ledger._connection.execute(f"PRAGMA {name}") for name in ("journal_mode", "synchronous")]
    assert [pragma.fetchone()[0] for pragma in pragmas] == ["wal", 2]


def test_closing_writes_what_was_handed_in_and_refuses_more(history):
    held = hold(history)
    handed_in = [history.accept(accepted(number)) for number in range(1, 21)]
    closing = threading.Thread(target=history.close)
    closing.start()
    held.set()
    closing.join()
    assert all(future.result() for future in handed_in)
    with pytest.raises(HistoryError, match="closed"):
        history.accept(accepted(21))


def test_a_write_is_carried_out_though_nobody_waits_for_it_any_more(history):
    held = hold(history)
    future = history.accept(accepted(1))
    assert future.cancel() is False
    held.set()
    assert future.result().id == accepted(1).id


def test_two_threads_read_while_others_write_and_each_sees_whole_runs(history):
    stop, seen = threading.Event(), []

    def read():
        while not stop.is_set():
            seen.extend((run.outputs, history.report_of(run.id)) for run in history.page(limit=5).runs)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    wait([history.record(accepted(number), DONE) for number in range(1, 501)])
    stop.set()
    for reader in readers:
        reader.join()
    history.record(accepted(501), DONE).result()
    read_once = [(run.outputs, history.report_of(run.id)) for run in history.page(limit=1).runs]
    assert set(seen + read_once) == {(DONE.outputs, DONE.report)}


WRITER = """
import sys
from concurrent.futures import as_completed
from pathlib import Path
from server.history import Accepted, Finished, History, State

first = int(sys.argv[2])
history = History(Path(sys.argv[1]))
history.recover(1000, 0.0).result()
print("open", flush=True)
done = Finished(State.DONE, 1.0, 1.0, "{}", report="x" * 3000)
def tell(word, number):
    return lambda future: print(f"{word} {number}", flush=True) if future.exception() is None else None
for number in range(first, first + 100_000):
    name = f"{number:032x}"
    run = Accepted(name, "local", "", f"graph {number % 7}" + "y" * 2000, None, 0, 0.0, webhook="http://h/")
    history.accept(run).add_done_callback(tell("accepted", number))
    history.start([name])
    finished = history.finish(name, done)
    finished.add_done_callback(tell("finished", number))
    if number % 50 == 0:
        history.prune(0.0, 100_000, 1.0)
        finished.result()
"""


def test_what_was_acknowledged_survives_a_dozen_kills_in_the_middle_of_writing(tmp_path):
    path, chance, told = tmp_path / "service.sqlite", random.Random(8), {"accepted": set(), "finished": set()}
    for attempt in range(12):
        with writing(path, 1 + attempt * 100_000) as process:
            lines = [process.stdout.readline() for _ in range(chance.randrange(1, 600))]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()
        for line in lines:
            if line.startswith(("accepted", "finished")) and line.endswith("\n"):
                word, number = line.split()
                told[word].add(number)
        history = History(path)
        assert history.check() == "ok"
        history.close()
    history = History(path)
    states = {str(int(run.id, 16)): run.state for run in everything(history)}
    owed = {str(int(delivery.run, 16)) for delivery in history.due(1e9, 1_000_000)}
    history.close()
    assert len(told["finished"]) > 100
    assert told["accepted"] <= states.keys()
    assert all(states[number] is State.DONE for number in told["finished"])
    assert owed == {number for number, state in states.items() if state is State.DONE}


def writing(path, first):
    command = [sys.executable, "-c", WRITER, str(path), str(first)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def everything(history):
    page = history.page(limit=1000)
    yield from page.runs
    while page.after:
        page = history.page(limit=1000, after=page.after)
        yield from page.runs


# A disk that refuses


def test_a_full_history_refuses_keeps_what_it_has_and_takes_runs_again_once_pruned(tmp_path):
    history = History(tmp_path / "service.sqlite", limit=400_000)
    kept, number = [], count(1)
    with pytest.raises(StorageFull, match="free some disk space"):
        while True:
            kept.append(ended(history, next(number), document="x" * 20_000 + str(len(kept))))
    with pytest.raises(StorageFull):
        ended(history, next(number), document="x" * 20_000)
    assert [run.id for run in everything(history)] == kept[::-1]
    assert history.check() == "ok"
    history.prune(1000 * DAY, runs=len(kept) // 2, days=1000).result()
    again = ended(history, next(number), document="x" * 20_000)
    assert history.page(limit=1).runs[0].id == again
    assert history.graph_of(again) == "x" * 20_000
    history.close()


def test_a_history_that_cannot_be_written_says_so_and_writes_again_when_it_can(history):
    history.accept(accepted(1)).result()
    history._ledger._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(HistoryError, match="make file and folder writable"):
        history.accept(accepted(2, document="new")).result()
    assert pages(history) == [[1]]
    history._ledger._connection.execute("PRAGMA query_only = OFF")
    history.accept(accepted(2, document="new")).result()
    assert pages(history) == [[2, 1]]
    assert history.graph_of(accepted(2).id) == "new"


REFUSED = """
import resource, sys
from pathlib import Path
from server.history import Accepted, History, HistoryError

def run(number):
    return Accepted(f"{number:032x}", "local", "", "z" * 50_000 + str(number), None, 0, 0.0)

history = History(Path(sys.argv[1]))
history.accept(run(1)).result()
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
refused = 0
for number in range(2, 20):
    try:
        history.accept(run(number)).result()
    except HistoryError as error:
        assert "disk" in str(error), error
        refused += 1
assert 0 < refused < 18, refused
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
history.accept(run(20)).result()
assert len(history.page().runs) == 20 - refused, (len(history.page().runs), refused)
assert history.check() == "ok"
history.close()
print("written again")
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
def test_a_disk_that_refuses_for_a_while_loses_nothing_that_was_acknowledged(tmp_path):
    command = [sys.executable, "-c", REFUSED, str(tmp_path / "service.sqlite")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout, done.stderr) == ("written again\n", "")


# Foreign files


def test_a_file_of_another_program_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "service.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE letters (text TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(HistoryError, match="another program; move the file away"):
        History(path)
    assert path.read_bytes() == before


def test_a_file_of_a_newer_layout_is_refused(tmp_path):
    path = tmp_path / "service.sqlite"
    History(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(HistoryError, match="got layout 99; start the version"):
        History(path)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "service.sqlite"
    path.write_bytes(b"not a database, but long enough to be one" * 50)
    with pytest.raises(HistoryError, match=r"service\.sqlite: .*name another data folder"):
        History(path)


def test_a_path_that_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(HistoryError, match="cannot be opened"):
        History(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HistoryError, match="cannot be opened"):
        History(tmp_path / "file" / "service.sqlite")


# Any life of runs, against a dictionary

GRAPHS = st.sampled_from(['{"a": 1}', '{"b": 2}', '{"c": 3}'])
BLOBS = st.sets(st.sampled_from("abc")).map(lambda names: tuple(blob(name).digest for name in sorted(names)))


class Lives(RuleBasedStateMachine):
    """The history does what a dictionary of states would do, and counts its texts right."""

    runs = Bundle("runs")

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "service.sqlite"
        self.model: dict[str, tuple[State, int]] = {}
        self.stops = Counter()
        self.ended: list[str] = []
        self.keys: dict[str, tuple[str, bytes]] = {}
        self.now = 0.0
        self.open()

    def open(self):
        self.history = History(self.path, clock=lambda: self.now)
        for name in "abc":
            self.history.add_blob(blob(name))

    def teardown(self):
        self.history.close()
        self.folder.cleanup()

    def _next(self):
        self.now += 1.0
        return f"{int(self.now):032x}"

    def _end(self, run, state):
        self.model[run] = (state, self.model[run][1])
        self.ended.append(run)

    @rule(target=runs, document=GRAPHS, blobs=BLOBS)
    def accept(self, document, blobs):
        run = Accepted(self._next(), "local", "", document, None, 0, self.now, blobs=blobs)
        assert not self.history.accept(run).result().known
        self.model[run.id] = (State.QUEUED, 0)
        return run.id

    @rule(target=runs, document=GRAPHS, key=st.sampled_from("kl"), body=st.sampled_from([b"1", b"2"]))
    def accept_with_key(self, document, key, body):
        run = Accepted(self._next(), "local", "", document, None, 0, self.now, key=(key, body))
        future = self.history.accept(run)
        earlier = self.keys.get(key)
        if earlier and earlier[1] != body:
            assert isinstance(future.exception(), IdempotencyConflict)
            return earlier[0]
        assert (future.result().id, future.result().known) == ((earlier or (run.id,))[0], bool(earlier))
        if not earlier:
            self.model[run.id], self.keys[key] = (State.QUEUED, 0), (run.id, body)
        return future.result().id

    @rule(target=runs, document=GRAPHS, report=GRAPHS, blobs=BLOBS)
    def record(self, document, report, blobs):
        run = Accepted(self._next(), "local", "", document, None, 0, self.now)
        finished = replace(DONE, finished=self.now, report=report)
        self.history.record(run, finished, blobs).result()
        self.model[run.id] = (State.QUEUED, 0)
        self._end(run.id, State.DONE)
        return run.id

    @rule(run=runs)
    def start(self, run):
        state, attempts = self.model.get(run, (None, 0))
        assert self.history.start([run]).result() == ((run,) if state is State.QUEUED else ())
        if state is State.QUEUED:
            self.model[run] = (State.RUNNING, attempts + 1)

    @rule(run=runs, state=st.sampled_from([State.DONE, State.FAILED, State.CANCELLED]), report=GRAPHS, blobs=BLOBS)
    def finish(self, run, state, report, blobs):
        self._next()
        running = self.model.get(run, (None, 0))[0] is State.RUNNING
        finished = Finished(state, self.now, 1.0, "{}", report=report)
        assert self.history.finish(run, finished, blobs).result() is running
        if running:
            self._end(run, state)

    @rule(run=runs)
    def cancel(self, run):
        self._next()
        state = self.model.get(run, (None, 0))[0]
        assert self.history.cancel(run).result() is (State.CANCELLED if state is State.QUEUED else state)
        if state is State.QUEUED:
            self._end(run, State.CANCELLED)

    @rule(run=runs)
    def requeue(self, run):
        state, attempts = self.model.get(run, (None, 0))
        self.history.requeue([run]).result()
        if state is State.RUNNING:
            self.model[run] = (State.QUEUED, attempts)
            self.stops[run] += 1

    @rule()
    def reopen_and_recover(self):
        self._next()
        self.history.close()
        self.open()
        self.history.recover(2, self.now).result()
        for run, (state, attempts) in list(self.model.items()):
            if state is State.RUNNING and attempts - self.stops[run] < 2:
                self.model[run] = (State.QUEUED, attempts)
            elif state is State.RUNNING:
                self._end(run, State.FAILED)

    @precondition(lambda self: self.ended)
    @rule(keep=st.integers(0, 3))
    def prune(self, keep):
        gone = self.ended[: max(0, len(self.ended) - keep)]
        assert self.history.prune(self.now, keep, 1000.0).result() == len(gone)
        for run in gone:
            del self.model[run]
        self.ended = self.ended[len(gone) :]
        self.keys = {key: made for key, made in self.keys.items() if made[0] in self.model}

    @invariant()
    def every_run_is_where_the_model_has_it(self):
        found = {run.id: (run.state, run.attempts) for run in everything(self.history)}
        assert found == self.model
        waiting = sorted(run for run, (state, _) in self.model.items() if state is State.QUEUED)
        assert [run.id for run in self.history.queued()] == waiting

    @invariant()
    def documents_are_counted_right(self):
        connection = sqlite3.connect(self.path)
        columns = ("document", "outputs", "report", "events", "problems", "uploads", "results")
        named = " UNION ALL ".join(f"SELECT {column} AS number FROM runs" for column in columns)
        counted = f"SELECT number, COUNT(*) FROM ({named}) WHERE number IS NOT NULL GROUP BY number ORDER BY number"
        assert connection.execute("SELECT number, uses FROM documents ORDER BY number").fetchall() == (
            connection.execute(counted).fetchall()
        )
        held = "SELECT number FROM texts UNION SELECT number FROM bundles EXCEPT SELECT number FROM documents"
        assert connection.execute(held).fetchall() == []
        connection.close()


TestLives = Lives.TestCase
TestLives.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
