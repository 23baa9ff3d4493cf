"""Several graphs at once: what they share runs once, what can be fused is, and nobody pays for another's trouble."""

import threading
from typing import Annotated

import pytest
import toys
from toys import GROUPS, LOG, Blob, Wave, engine, graph, mixed

from engine import errors
from engine.context import CancelToken, Context
from engine.engine import Order, Result
from engine.event import NodeFinished, NodeStarted, Outcome, RunFinished, RunStarted, Trouble
from engine.file import Files
from engine.node import node
from engine.param import Fresh
from engine.run import Bounds


@pytest.fixture(autouse=True)
def _fresh_logs():
    LOG.clear()
    GROUPS.clear()


def chain(by=1, *, text="fox", outputs=("image",)):
    """A blob, encoded, scaled (which can be fused), decoded."""
    return graph(
        {"image": "decoded", "wave": "scaled"} | {} if len(outputs) > 1 else {"image": "decoded"},
        {
            "photo": ("toy.blob", {"text": text}),
            "start": ("toy.encode", {}, {"blob": "photo"}),
            "by": ("toy.number", {"value": by}),
            "scaled": ("toy.scale", {}, {"by": "by", "wave": "start"}),
            "decoded": ("toy.decode", {}, {"wave": "scaled"}),
        },
    )


def together(house, *orders):
    """The outcomes, in the order of the orders."""
    found = {}
    house.together([order if isinstance(order, Order) else Order(order) for order in orders], found.__setitem__)
    return [found[index] for index in range(len(orders))]


class TestSharing:
    def test_what_two_graphs_need_runs_once(self):
        first, second = together(engine(), chain(1), chain(2))
        assert sorted(LOG) == sorted(
            ["toy.blob", "toy.encode", "toy.number", "toy.number", "toy.scale", "toy.scale", "toy.decode", "toy.decode"]
        )
        assert sorted([*first.ran(), *second.ran()]) == sorted(
            ["photo", "start", "by", "by", "scaled", "scaled", "decoded", "decoded"]
        )
        hits = [
            (name, report.reason)
            for result in (first, second)
            for name, report in result.nodes.items()
            if report.outcome is Outcome.HIT
        ]
        assert sorted(hits) == [("photo", "hit"), ("start", "hit")]

    def test_results_are_those_of_running_alone(self):
        graphs = [chain(by, text=text) for by in (1, 2) for text in ("fox", "owl")]
        alone = [dict(engine().run(found).outputs) for found in graphs]
        assert [dict(result.outputs) for result in together(engine(), *graphs)] == alone

    def test_fusible_steps_of_all_runs_are_called_together(self):
        together(engine(), chain(1), chain(2), chain(3))
        assert GROUPS == [3, 2, 1]

    def test_equal_fusible_steps_are_called_once(self):
        results = together(engine(), chain(1), chain(1), chain(2))
        assert GROUPS == [2, 2, 1]
        assert LOG.count("toy.scale") == 2
        assert [result["image"] for result in results[:2]] == [results[0]["image"]] * 2

    def test_what_the_last_run_left_has_in_common_with_one_that_is_over_is_not_made_again(self):
        first, second = together(engine(), chain(1), chain(1))
        assert LOG.count("toy.scale") == LOG.count("toy.decode") == 1
        assert sorted([*first.ran(), *second.ran()]) == ["by", "decoded", "photo", "scaled", "start"]

    def test_exact_mode_fuses_nothing(self):
        together(engine(exact=True), chain(1), chain(2))
        assert GROUPS == []

    def test_groups_have_a_limit_that_takes_from_each_run_in_turn(self, monkeypatch):
        monkeypatch.setattr("engine.loop.FUSED", 2)
        many = graph(
            {f"s{by}": f"s{by}" for by in range(1, 4)},
            {
                "photo": ("toy.blob",),
                "start": ("toy.encode", {}, {"blob": "photo"}),
                **{f"n{by}": ("toy.number", {"value": by}) for by in range(1, 4)},
                **{f"s{by}": ("toy.scale", {}, {"by": f"n{by}", "wave": "start"}) for by in range(1, 4)},
            },
        )
        started = []
        order = Order(chain(8), listener=started.append)
        first = Order(many, listener=started.append)
        together(engine(), first, order)
        scales = [event.node for event in started if isinstance(event, NodeStarted) and event.type == "toy.scale"]
        assert scales == ["s1", "scaled", "s2", "s3"]
        assert GROUPS == [2, 2, 2, 2, 1]

    def test_a_short_run_is_done_before_a_long_one(self):
        order, short = [], graph({"image": "photo"}, {"photo": ("toy.blob", {"text": "owl"})})
        engine().together([Order(chain()), Order(short)], lambda index, _: order.append(index))
        assert order == [1, 0]

    def test_every_order_has_its_own_story(self):
        heard = ([], [])
        orders = [Order(chain(by), listener=heard[index].append) for index, by in enumerate((1, 2))]
        together(engine(), *orders)
        for events in heard:
            assert isinstance(events[0], RunStarted)
            assert isinstance(events[-1], RunFinished)
            assert len({event.run for event in events}) == 1
            finished = [event.node for event in events if isinstance(event, NodeFinished)]
            assert sorted(finished) == ["by", "decoded", "photo", "scaled", "start"]
        assert heard[0][0].run != heard[1][0].run

    def test_explanations_are_those_of_each_graph(self):
        house = engine()
        house.run(chain(1))
        (first,) = together(house, chain(2))
        assert first.nodes["by"].reason == "parameter changed (value: 1 → 2)"


class TestTrouble:
    def test_a_cancelled_run_leaves_the_others_alone(self):
        token = CancelToken()
        token.cancel()
        first, second = together(engine(), Order(chain(1), token=token), chain(2))
        assert isinstance(first, errors.Cancelled)
        assert isinstance(second, Result)
        assert dict(second.outputs) == dict(engine().run(chain(2)).outputs)

    def test_cancelling_within_a_fused_call_ends_that_run_alone(self):
        tokens = [CancelToken(), CancelToken()]

        def many(calls):
            tokens[0].cancel()
            yield {number: paused(call) for number, call in enumerate(calls)}

        def paused(call):
            try:
                return slow(**call)
            except errors.Cancelled as end:
                return end

        @node("toy.slow", version=1, many=many)
        def slow(seed: int, context: Context) -> Blob:
            """Something with a cancel point."""
            context.progress(0, 1)
            return Blob(str(seed))

        house = engine(slow)
        graphs = [graph({"image": "a"}, {"a": ("toy.slow", {"seed": seed})}) for seed in (1, 2)]
        orders = [Order(found, token=token) for found, token in zip(graphs, tokens, strict=True)]
        first, second = together(house, *orders)
        assert isinstance(first, errors.Cancelled)
        assert second["image"] == Blob("2")
        assert house.run(graphs[0])["image"] == Blob("1")

    def test_a_companion_that_lets_the_cancellation_through_is_called_again_for_the_others(self):
        tokens, calls_seen = [CancelToken(), CancelToken(), CancelToken()], []

        def many(calls):
            calls_seen.append(len(calls))
            tokens[1].cancel()
            yield {number: slow(**call) for number, call in enumerate(calls)}

        @node("toy.slow", version=1, many=many)
        def slow(seed: int, context: Context) -> Blob:
            """Something with a cancel point."""
            context.progress(0, 1)
            return Blob(str(seed))

        graphs = [graph({"image": "a"}, {"a": ("toy.slow", {"seed": seed})}) for seed in (1, 2, 3)]
        orders = [Order(found, token=token) for found, token in zip(graphs, tokens, strict=True)]
        first, second, third = together(engine(slow), *orders)
        assert isinstance(second, errors.Cancelled)
        assert (first["image"], third["image"]) == (Blob("1"), Blob("3"))
        assert calls_seen == [3, 2]

    def test_a_failed_node_fails_its_own_run(self):
        @node("toy.broken", version=1)
        def broken(blob: Blob) -> Blob:
            """Never works."""
            raise ValueError("no")

        house = engine(broken)
        bad = graph({"image": "b"}, {"photo": ("toy.blob",), "b": ("toy.broken", {}, {"blob": "photo"})})
        first, second = together(house, bad, chain())
        assert list(first.failures) == ["b"]
        assert not second.failures

    def test_a_refused_graph_is_an_outcome_of_its_own(self):
        bad = graph({"image": "photo"}, {"photo": ("toy.blob", {"weight": 0})})
        heard = []
        first, second = together(engine(), Order(bad, listener=heard.append), chain())
        assert isinstance(first, errors.GraphError)
        assert isinstance(second, Result)
        assert heard == []

    def test_a_missing_file_is_an_outcome_of_its_own(self, tmp_path):
        bad = graph({"image": "a"}, {"a": ("toy.load", {"source": "none.txt"})})
        first, second = together(engine(files=Files([tmp_path])), bad, chain())
        assert isinstance(first, errors.GraphError)
        assert isinstance(second, Result)

    def test_a_file_that_changes_is_planned_again_beside_a_run_that_goes_on(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("red")
        house = engine(files=Files([tmp_path]))
        reader = graph(
            {"image": "b"},
            {
                "s": ("toy.blob", {"text": "x"}),
                "a": ("toy.load", {"source": "a.txt"}),
                "b": ("toy.join", {}, {"blobs": ["s", "a"]}),
            },
        )
        heard = []

        def listener(event):
            heard.append(event)
            if isinstance(event, NodeStarted) and event.type == "toy.load" and len(path.read_text()) == 3:
                path.write_text("blue!")

        first, second = together(house, Order(reader, listener=listener), chain())
        assert first["image"] == Blob(mixed("join", "x", "blue!"))
        assert isinstance(second, Result)
        assert [event.message for event in heard if isinstance(event, Trouble)] == [
            f"a.txt changed while the graph ran ({path}); planned again"
        ]

    def test_a_listener_that_raises_ends_the_turn_and_the_engine_lives_on(self):
        def listener(event):
            if isinstance(event, NodeStarted):
                raise TypeError("listener")

        house = engine()
        with pytest.raises(TypeError, match="listener"):
            together(house, Order(chain(1), listener=listener), chain(2))
        assert isinstance(house.run(chain(1)), Result)


class TestRecall:
    def test_what_is_known_is_recalled_with_its_story(self):
        house = engine()
        first = house.run(chain())
        LOG.clear()
        again = house.recall(chain())
        assert again is not None
        assert dict(again.outputs) == dict(first.outputs)
        assert again.identities == first.identities == {"image": first["image"].identity()}
        assert {report.outcome for report in again.nodes.values()} == {Outcome.HIT}
        assert LOG == []

    def test_nothing_is_recalled_where_something_has_to_run(self):
        house = engine()
        house.run(chain())
        LOG.clear()
        assert house.recall(chain(2)) is None
        assert LOG == []

    def test_nothing_is_recalled_where_a_wanted_value_is_gone(self):
        house = engine()
        house.run(chain())
        for identity in house.store.identities():
            house.store.drop_memory(identity)
        assert house.recall(chain()) is None

    def test_a_recall_explains_nothing_away(self):
        """A graph that could not be recalled runs for the reason it would have run for."""
        house = engine()
        house.run(chain(1))
        assert house.recall(chain(2)) is None
        assert house.run(chain(2)).nodes["by"].reason == "parameter changed (value: 1 → 2)"

    def test_what_was_recalled_is_recalled_again_in_the_same_words(self):
        house, asked = engine(), chain()
        house.run(asked)
        first, second = house.recall(asked), house.recall(asked)
        assert first is not None
        assert second is not None
        assert (second.outputs, second.nodes, second.identities) == (first.outputs, first.nodes, first.identities)
        assert second.run != first.run
        assert LOG.count("toy.scale") == 1

    def test_what_was_evicted_in_the_middle_is_told_by_the_next_recall(self):
        house, asked = engine(), chain()
        result = house.run(asked)
        house.recall(asked)
        for identity in house.store.identities() - {result.identities["image"]}:
            house.store.drop_memory(identity)
        again = house.recall(asked)
        assert again is not None
        assert again.nodes["scaled"].outcome is Outcome.UNNEEDED
        assert again.nodes["decoded"].outcome is Outcome.HIT

    def test_nothing_is_recalled_once_everything_was_cleared(self):
        house, asked = engine(), chain()
        house.run(asked)
        assert house.recall(asked) is not None
        house.clear()
        assert house.recall(asked) is None

    def test_another_file_under_the_name_is_seen_by_the_next_recall(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("red")
        house = engine(files=Files([tmp_path]))
        asked = graph({"image": "a"}, {"a": ("toy.load", {"source": "a.txt"})})
        house.run(asked)
        assert house.recall(asked) is not None
        assert house.recall(asked) is not None
        path.write_text("blue")
        assert house.recall(asked) is None
        path.unlink()
        with pytest.raises(errors.GraphError):
            house.recall(asked)

    def test_explanations_after_a_recall_compare_with_what_was_recalled(self):
        house, asked = engine(), chain(1)
        house.run(asked)
        house.recall(asked)
        house.run(chain(2))
        house.recall(asked)
        assert house.run(chain(3)).nodes["by"].reason == "parameter changed (value: 1 → 3)"

    def test_a_refused_graph_is_refused(self):
        with pytest.raises(errors.GraphError):
            engine().recall(graph({"image": "photo"}, {"photo": ("toy.blob", {"weight": 0})}))

    def test_a_recall_answers_while_a_node_works_and_a_plan_does_too(self):
        working, leave = threading.Event(), threading.Event()

        @node("toy.wait", version=1)
        def wait(seed: int) -> Blob:
            """Works until it is told to stop."""
            working.set()
            leave.wait(30)
            return Blob(str(seed))

        house = engine(wait)
        known = house.run(chain())
        busy = graph({"image": "a"}, {"a": ("toy.wait", {"seed": 1})})
        thread = threading.Thread(target=house.run, args=(busy,))
        thread.start()
        try:
            assert working.wait(30)
            recalled = house.recall(chain(), timeout=30)
            assert recalled is not None
            assert dict(recalled.outputs) == dict(known.outputs)
            assert [str(item.verdict) for item in house.plan(busy)] == ["run"]
            assert thread.is_alive()
        finally:
            leave.set()
            thread.join()
        assert house.recall(busy) is not None

    def test_a_recall_does_not_wait_longer_than_it_is_told_to(self):
        held, leave, house = threading.Event(), threading.Event(), engine()
        house.run(chain())

        def listener(event):
            held.set()
            leave.wait(30)

        thread = threading.Thread(target=lambda: house.run(chain(2), listener=listener))
        thread.start()
        try:
            assert held.wait(30)
            with pytest.raises(TimeoutError, match="busy"):
                house.recall(chain(), timeout=0)
        finally:
            leave.set()
            thread.join()


class Dear(Bounds):
    """Refuses large weights and long texts."""

    def before(self, definition, arguments):
        if arguments.get("weight", 0) > 1000:
            raise ValueError("at most 1000 of weight")

    def after(self, definition, outputs):
        if any(len(getattr(value, "text", "")) > 10 for value in outputs):
            raise ValueError("too long a text")


class TestBounds:
    def test_a_call_beyond_the_bounds_is_not_made(self):
        result = engine(bounds=Dear()).run(graph({"image": "a"}, {"a": ("toy.blob", {"weight": 1001})}), check=False)
        assert result.nodes["a"].reason == "ValueError: at most 1000 of weight"
        assert LOG == []

    def test_a_result_beyond_the_bounds_is_not_kept(self):
        house = engine(bounds=Dear())
        long = graph({"image": "a"}, {"a": ("toy.blob", {"text": "x" * 11})})
        result = house.run(long, check=False)
        assert result.nodes["a"].reason == "ValueError: too long a text"
        assert not house.store.identities()

    def test_what_is_within_the_bounds_runs(self):
        assert isinstance(engine(bounds=Dear()).run(chain())["image"], Blob)


def test_settling_draws_fresh_values_once():
    @node("toy.seeded", version=1)
    def seeded(seed: Annotated[int, Fresh(when=-1, below=2**32)] = -1) -> Wave:
        """Noise."""
        return Wave(str(seed))

    house = engine(seeded)
    asked = graph({"wave": "a"}, {"a": ("toy.seeded", {"seed": -1})})
    assert house.recall(asked) is None
    settled = house.settle(asked)
    seed = settled.document.nodes["a"].params["seed"]
    assert seed >= 0
    assert house.settle(settled) is settled
    assert house.run(settled)["wave"] == Wave(str(seed))
    assert toys.LOG == []


def test_what_is_held_is_told_by_tier(tmp_path):
    house = engine(cache=tmp_path)
    house.run(chain())
    house.flush()
    held = house.held()
    assert held["device"] == sum(house.store.get(identity).nbytes() for identity in house.store.identities())
    assert held["disk"] > 0
    assert held["models"] == 0
