"""Runs that come while others are on their way: they join between two rounds, and nobody waits for ever."""

import threading
from dataclasses import dataclass, field

import pytest
import toys
from accelerators import Ref
from toys import GROUPS, LOG, Blob, engine, graph

from engine import errors
from engine.context import CancelToken, Context
from engine.engine import Order, Result
from engine.event import NodeStarted, Outcome
from engine.host import Host
from engine.node import node


@pytest.fixture(autouse=True)
def _fresh_logs():
    LOG.clear()
    GROUPS.clear()


def chain(by):
    """Something that takes 1 + `by` % 3 rounds, and is decoded."""
    return graph(
        {"image": "decoded"},
        {
            "photo": ("toy.blob",),
            "start": ("toy.encode", {}, {"blob": "photo"}),
            "by": ("toy.number", {"value": by}),
            "scaled": ("toy.scale", {}, {"by": "by", "wave": "start"}),
            "decoded": ("toy.decode", {}, {"wave": "scaled"}),
        },
    )


def run(house, orders, late=(), done=lambda *_: None):
    """The outcomes; `late` are the orders that there are, time after time, when the engine asks for more."""
    found, left = {}, iter(late)

    def noted(index, outcome):
        found[index] = outcome
        done(index, outcome)

    house.together(list(map(order, orders)), noted, lambda: list(map(order, next(left, ()))))
    return [found[index] for index in range(len(found))]


def order(given):
    return given if isinstance(given, Order) else Order(given)


@dataclass
class Walk:
    """A node whose calls take as many rounds as they are told; what it saw; what it meets."""

    rounds: list = field(default_factory=list)
    meets: dict = field(default_factory=dict)
    closed: int = 0

    @property
    def node(self):
        def many(calls):
            flying, count = {}, 0
            try:
                while calls or flying:
                    flying |= {number: [call, call["steps"]] for number, call in enumerate(calls, count)}
                    count += len(calls)
                    self.rounds.append([call["seed"] for call, _ in flying.values()])
                    self.meets.pop(len(self.rounds), lambda: None)()
                    finished = {number: end for number, each in flying.items() if (end := self.step(each)) is not None}
                    for number in finished:
                        del flying[number]
                    calls = yield finished
            finally:
                self.closed += 1

        @node("toy.walk", version=1, many=many)
        def walk(seed: int, steps: int, context: Context, model: Ref | None = None) -> Blob:
            """So many steps."""
            raise AssertionError("the companion makes these calls")

        return walk

    def step(self, waiting):
        call, left = waiting
        try:
            call["context"].progress(call["steps"] - left, call["steps"])
        except errors.Cancelled as end:
            return end
        waiting[1] -= 1
        return None if waiting[1] else Blob(f"walk {call['seed']}")


@pytest.fixture
def walk():
    return Walk()


def steps(seed, count, *, model=None, decoded=False):
    nodes = {"a": ("toy.walk", {"seed": seed, "steps": count}, {"model": "m"} if model else {})}
    if model:
        nodes["m"] = ("toy.model", {"name": model, "size": 100})
    if decoded:
        nodes["label"] = ("toy.classify", {}, {"blob": "a"})
    return graph({"image": "label" if decoded else "a"}, nodes)


class TestNewcomers:
    def test_a_late_run_joins_at_the_next_round_and_is_done_before_a_longer_one_that_was_there_first(self):
        order = []
        run(engine(), [chain(2)], [[], [chain(3)]], lambda index, _: order.append((index, len(GROUPS))))
        assert GROUPS == [1, 2, 1]
        assert order == [(1, 2), (0, 3)]

    def test_what_follows_an_early_end_does_not_wait_for_the_others(self):
        run(engine(), [chain(2), chain(0)])
        assert GROUPS == [2, 1, 1]
        assert LOG.index("toy.decode") < [place for place, each in enumerate(LOG) if each == "toy.scale"][1]

    def test_a_step_that_is_ready_late_in_the_same_run_joins_too(self, walk):
        nodes = {
            "a": ("toy.walk", {"seed": 1, "steps": 4}),
            "b": ("toy.walk", {"seed": 2, "steps": 1}),
            "c": ("toy.number", {"value": 3}),
            "d": ("toy.walk", {"steps": 1}, {"seed": "e"}),
            "e": ("toy.measure", {}, {"blob": "b"}),
        }

        @node("toy.measure", version=1)
        def measure(blob: Blob) -> toys.Int:
            """The length of a text."""
            return toys.Int(len(blob.text))

        run(engine(walk.node, measure), [graph({"a": "a", "d": "d"}, nodes)])
        assert walk.rounds == [[1, 2], [1, 6], [1], [1]]

    def test_results_are_those_of_running_alone(self):
        graphs = [chain(by) for by in (2, 5, 4, 0, 1)]
        alone = [dict(engine().run(found).outputs) for found in graphs]
        late = [[graphs[1]], [graphs[2], graphs[3]], [graphs[4]]]
        assert [dict(result.outputs) for result in run(engine(), graphs[:1], late)] == alone

    def test_what_an_earlier_run_made_is_a_hit(self):
        _, late = run(engine(), [chain(2)], [[], [chain(3)]])
        assert late.ran() == ["by", "scaled", "decoded"]
        assert late.nodes["start"].outcome is Outcome.HIT

    def test_an_equal_call_waits_for_the_one_that_is_on_its_way(self):
        first, second = run(engine(), [chain(2)], [[], [chain(2)]])
        assert GROUPS == [1, 1, 1]
        assert LOG.count("toy.scale") == LOG.count("toy.decode") == 1
        assert first["image"] == second["image"]
        assert second.nodes["scaled"].outcome is Outcome.HIT

    def test_an_equal_call_of_a_run_that_is_cancelled_is_made_for_the_one_that_waits(self, walk):
        token = CancelToken()
        walk.meets = {2: token.cancel}
        first, second = run(engine(walk.node), [Order(steps(1, 3), token=token)], [[], [steps(1, 3)]])
        assert isinstance(first, errors.Cancelled)
        assert second["image"] == Blob("walk 1")
        assert walk.rounds == [[1], [1], [1], [1], [1]]

    def test_a_late_graph_that_is_refused_is_an_outcome_of_its_own(self):
        bad = graph({"image": "photo"}, {"photo": ("toy.blob", {"weight": 0})})
        first, refused, last = run(engine(), [chain(2)], [[bad], [chain(0)]])
        assert isinstance(refused, errors.GraphError)
        assert isinstance(first, Result)
        assert isinstance(last, Result)
        assert GROUPS == [1, 2, 1]

    def test_a_late_run_that_has_nothing_to_do_is_done_at_once(self):
        house, order = engine(), []
        house.run(chain(0))
        GROUPS.clear()
        run(house, [chain(2)], [[], [chain(0)]], lambda index, _: order.append((index, len(GROUPS))))
        assert order == [(1, 1), (0, 3)]

    def test_no_more_join_than_there_may_be(self, walk, monkeypatch):
        monkeypatch.setattr("engine.loop.FUSED", 2)
        run(engine(walk.node), [steps(1, 3)], [[steps(2, 1), steps(3, 1)], [steps(4, 1)]])
        assert walk.rounds == [[1, 2], [1, 3], [1, 4]]

    def test_exact_mode_asks_nobody(self):
        [only] = run(engine(exact=True), [chain(2)], [[chain(3)]])
        assert isinstance(only, Result)

    def test_runs_that_come_without_end_do_not_keep_those_from_going_on_that_are_there(self):
        ended = []
        house = engine()
        house.run(chain(0))

        def more():
            return [] if 0 in ended else [Order(chain(0))]

        house.together([Order(chain(2))], lambda index, _: ended.append(index), more)
        assert ended == [1, 2, 3, 0]

    def test_whoever_plans_or_recalls_need_not_wait_for_a_round(self, walk):
        working, leave = threading.Event(), threading.Event()

        def pause():
            working.set()
            assert leave.wait(30)

        walk.meets = {2: pause}
        house = engine(walk.node)
        known = house.run(chain(0))
        thread = threading.Thread(target=run, args=(house, [steps(1, 3)]))
        thread.start()
        try:
            assert working.wait(30)
            assert dict(house.recall(chain(0), timeout=30).outputs) == dict(known.outputs)
            assert [str(item.verdict) for item in house.plan(steps(1, 3))] == ["run"]
        finally:
            leave.set()
            thread.join()


class TestOtherKinds:
    def test_nobody_starves_while_runs_of_another_model_keep_coming(self, walk):
        ended, count = [], iter(range(100, 150))

        def more():
            return [Order(steps(next(count), 3, model="unet"))] if len(ended) < 30 else []

        orders = [Order(steps(1, 3, model="unet")), Order(steps(2, 2, model="vae"))]
        engine(walk.node).together(orders, lambda index, _: ended.append(index), more)
        assert ended.index(1) == 1
        assert walk.rounds[:5] == [[1], [1], [1], [2], [2]]

    def test_a_late_run_of_another_model_waits_for_those_that_are_there_and_for_nobody_else(self, walk):
        ended, late = [], iter([[steps(2, 2, model="vae")], [steps(3, 9, model="unet")]])
        run(engine(walk.node), [steps(1, 3, model="unet")], late, lambda index, _: ended.append(index))
        assert ended == [0, 1, 2]
        assert walk.rounds == [[1]] * 3 + [[2]] * 2 + [[3]] * 9

    def test_those_of_one_model_do_not_share_rounds_with_those_of_another(self, walk):
        graphs = [steps(seed, 2, model=("unet", "vae")[seed % 2]) for seed in range(4)]
        run(engine(walk.node), graphs)
        assert walk.rounds == [[0, 2], [0, 2], [1, 3], [1, 3]]


class TestTrouble:
    def test_a_cancelled_run_ends_within_a_round_and_the_others_repeat_nothing(self, walk):
        tokens, ended = [CancelToken() for _ in range(3)], []
        walk.meets = {2: tokens[1].cancel}
        orders = [Order(steps(seed, 4), token=tokens[seed]) for seed in range(3)]
        outcomes = run(engine(walk.node), orders, done=lambda index, _: ended.append((index, len(walk.rounds))))
        assert isinstance(outcomes[1], errors.Cancelled)
        assert walk.rounds == [[0, 1, 2], [0, 1, 2], [0, 2], [0, 2]]
        assert ended == [(1, 2), (0, 4), (2, 4)]

    def test_a_run_that_is_cancelled_between_two_rounds_takes_part_in_one_more_at_most(self, walk):
        token = CancelToken()

        def listener(event):
            if isinstance(event, NodeStarted) and event.type == "toy.blob":
                token.cancel()

        late = Order(graph({"image": "a"}, {"a": ("toy.blob",)}), listener=listener)
        outcomes = run(engine(walk.node), [Order(steps(1, 9), token=token), steps(2, 3)], [[], [late]])
        assert isinstance(outcomes[0], errors.Cancelled)
        assert walk.rounds == [[1, 2], [1, 2], [2]]

    def test_what_a_round_raises_fails_those_that_are_in_it(self, walk):
        walk.meets = {2: lambda: (_ for _ in ()).throw(ValueError("no"))}
        house = engine(walk.node)
        outcomes = run(house, [steps(1, 3)], [[], [steps(2, 3)]])
        assert [list(each.failures) for each in outcomes] == [["a"], ["a"]]
        assert walk.rounds == [[1], [1, 2]]
        assert house.run(steps(2, 1))["image"] == Blob("walk 2")

    def test_a_listener_that_raises_closes_what_is_on_its_way(self, walk):
        def listener(event):
            raise TypeError("listener")

        house = engine(walk.node)
        with pytest.raises(TypeError, match="listener"):
            run(house, [steps(1, 9, model="unet")], [[], [Order(chain(1), listener=listener)]])
        assert (walk.rounds, walk.closed) == ([[1]], 1)
        assert house.run(chain(1))["image"] == engine().run(chain(1))["image"]

    def test_a_source_that_raises_ends_the_turn_and_the_engine_lives_on(self, walk):
        house = engine(walk.node)
        with pytest.raises(ZeroDivisionError):
            house.together([Order(steps(1, 2))], lambda *_: None, lambda: [1 / 0])
        assert house.run(steps(1, 2))["image"] == Blob("walk 1")

    @pytest.mark.parametrize(
        ("finished", "message"),
        [
            ({}, "toy.bad: many ended with 1 of its calls unfinished"),
            ({3: Blob("a")}, "toy.bad: many gave results for [3], which are on their way no more"),
        ],
    )
    def test_a_companion_that_does_not_do_as_it_should_fails_its_calls(self, finished, message):
        def many(calls):
            del calls
            yield finished

        @node("toy.bad", version=1, many=many)
        def bad(seed: int) -> Blob:
            """Bad company."""
            raise AssertionError

        result = engine(bad).run(graph({"image": "a"}, {"a": ("toy.bad", {"seed": 1})}), check=False)
        assert result.nodes["a"].reason == f"OutputRefused: {message}"


class TestMemory:
    """What does not fit is made again, with less beside it; what fits is not."""

    @pytest.fixture
    def short(self, walk):
        def raise_at(*rounds):
            for number in rounds:
                walk.meets[number] = self.full

        return raise_at

    @staticmethod
    def full():
        raise MemoryError

    def test_all_that_are_unfinished_are_made_again_from_their_start_and_what_is_finished_is_kept(self, walk, short):
        short(2)
        outcomes = run(engine(walk.node), [steps(1, 1), steps(2, 3), steps(3, 2)])
        assert walk.rounds == [[1, 2, 3], [2, 3], [2, 3], [2, 3], [2]]
        assert [each["image"] for each in outcomes] == [Blob(f"walk {seed}") for seed in (1, 2, 3)]

    def test_then_by_halves_and_nobody_joins_those(self, walk, short):
        short(2, 4)
        run(engine(walk.node), [steps(1, 2), steps(2, 2), steps(3, 2)], [[], [], [steps(4, 1)], [steps(5, 1)]])
        assert walk.rounds[:4] == [[1, 2, 3]] * 4
        assert walk.rounds[4:] == [[1], [1], [2, 3], [2, 3], [4, 5]]

    def test_one_that_is_alone_is_told_that_memory_is_short_and_fails_if_that_does_not_help(self, walk, short):
        short(1, 2, 3)
        [result] = run(engine(walk.node), [steps(1, 2)])
        assert walk.rounds == [[1], [1], [1]]
        assert result.nodes["a"].reason.startswith("OutOfMemory: out of memory on cpu after freeing 0 B")

    def test_a_newcomer_that_memory_is_too_short_for_waits_for_the_others_who_repeat_nothing(self, walk):
        tries = []

        def step(waiting):
            if waiting[0]["seed"] == 2 and len(walk.rounds[-1]) > 1:
                tries.append(len(walk.rounds))
                return MemoryError("no room")
            return Walk.step(walk, waiting)

        walk.step = step
        outcomes = run(engine(walk.node), [steps(1, 4)], [[], [steps(2, 2)]])
        assert walk.rounds == [[1], [1, 2], [1], [1], [2], [2]]
        assert tries == [2]
        assert [each["image"] for each in outcomes] == [Blob("walk 1"), Blob("walk 2")]

    def test_a_step_beside_them_that_memory_is_too_short_for_waits_until_they_are_through(self, walk):
        tries = []

        @node("toy.large", version=1)
        def large(blob: Blob) -> Blob:
            """Needs all memory."""
            tries.append(len(walk.rounds))
            if len(walk.rounds) < 4:
                raise MemoryError
            return Blob(f"large {blob.text}")

        nodes = {"a": ("toy.walk", {"seed": 1, "steps": 1}), "b": ("toy.large", {}, {"blob": "a"})}
        late = [[], [steps(3, 1)]]
        outcomes = run(engine(walk.node, large), [graph({"image": "b"}, nodes), steps(2, 4)], late)
        assert outcomes[0]["image"] == Blob("large walk 1")
        assert tries == [1, 1, 4]
        assert walk.rounds == [[1, 2], [2], [2], [2]]

    @pytest.mark.parametrize(("memory", "made"), [(300, [2, 3]), (250, [3, 3])])
    def test_a_step_whose_model_finds_no_room_beside_theirs_waits_until_they_are_through(self, walk, memory, made):
        """The calls hold 200 bytes of model; the step wants 100."""
        places, held = [], []

        def step(waiting):
            waiting[0]["context"].model(waiting[0]["model"])
            return Walk.step(walk, waiting)

        @node("toy.develop", version=1)
        def develop(model: Ref, blob: Blob, context: Context) -> Blob:
            """Needs a model of its own."""
            context.model(model)
            places.append(len(walk.rounds))
            held.append(house.held()["models"])
            return Blob(f"{blob.text}, developed")

        walk.step = step
        house = engine(walk.node, develop, memory=memory)
        nodes = {
            "unet": ("toy.model", {"name": "unet", "size": 200}),
            "vae": ("toy.model", {"name": "vae", "size": 100}),
            **{f"a{n}": ("toy.walk", {"seed": n, "steps": n}, {"model": "unet"}) for n in (2, 3)},
            **{f"b{n}": ("toy.develop", {}, {"model": "vae", "blob": f"a{n}"}) for n in (2, 3)},
        }
        result = house.run(graph({name: name for name in ("b2", "b3")}, nodes))
        assert [result[name].text for name in ("b2", "b3")] == ["walk 2, developed", "walk 3, developed"]
        assert places == made
        assert max(held) <= memory

    def test_equal_steps_of_two_runs_that_were_set_aside_are_made_once(self, walk):
        made = []

        @node("toy.large", version=1)
        def large(blob: Blob) -> Blob:
            """Needs all memory."""
            if len(walk.rounds) < 4:
                raise MemoryError
            made.append(blob.text)
            return Blob("large")

        nodes = {"a": ("toy.blob", {"text": "same"}), "b": ("toy.large", {}, {"blob": "a"})}
        wanting = graph({"image": "b"}, nodes)
        _, second, third = run(engine(walk.node, large), [steps(1, 4)], [[], [wanting, wanting]])
        assert made == ["same"]
        assert (second["image"], third["image"]) == (Blob("large"), Blob("large"))
        assert walk.rounds == [[1]] * 4

    def test_a_step_that_was_set_aside_is_not_made_for_a_run_that_is_over_by_then(self, walk):
        tries, token = [], CancelToken()

        @node("toy.large", version=1)
        def large(blob: Blob) -> Blob:
            """Never fits."""
            tries.append(len(walk.rounds))
            raise MemoryError

        walk.meets, ended = {3: token.cancel}, []
        nodes = {"a": ("toy.walk", {"seed": 1, "steps": 1}), "b": ("toy.large", {}, {"blob": "a"})}
        orders = [Order(graph({"image": "b"}, nodes), token=token), steps(2, 9)]
        outcomes = run(engine(walk.node, large), orders, done=lambda index, _: ended.append((index, len(walk.rounds))))
        assert isinstance(outcomes[0], errors.Cancelled)
        assert outcomes[1]["image"] == Blob("walk 2")
        assert tries == [1, 1]
        assert ended == [(0, 4), (1, 9)]

    def test_models_are_given_back_when_the_calls_that_asked_for_them_are_finished(self):
        held = []

        def many(calls):
            for call in calls:
                call["context"].model(call["model"])
            yield {0: Blob("first")}
            held.append(pool._holds[calls[0]["model"].identity()])
            yield {1: Blob("second")}

        @node("toy.pair", version=1, many=many)
        def pair(model: Ref, seed: int, context: Context) -> Blob:
            """Two calls with one model."""
            raise AssertionError

        house = engine(pair)
        pool = house._resources.models
        nodes = {
            "m": ("toy.model", {"name": "unet"}),
            **{f"p{seed}": ("toy.pair", {"seed": seed}, {"model": "m"}) for seed in (1, 2)},
        }
        house.run(graph({name: name for name in ("p1", "p2")}, nodes))
        assert held == [1]
        assert sum(pool._holds.values()) == 0


class TestPace:
    def test_the_device_is_waited_for_only_where_something_is_finished(self, walk):
        """Else the next round is prepared while it computes."""
        waits = []

        class Noting(Host):
            def sync(self):
                waits.append("whole")

            def pace(self):
                waits.append("round before")

        run(engine(walk.node, device=Noting()), [steps(1, 4), steps(2, 2)])
        assert walk.rounds == [[1, 2], [1, 2], [1], [1]]
        assert waits == ["round before", "whole", "round before", "whole"]

    @pytest.mark.gpu
    def test_the_host_is_a_round_ahead_of_the_device_and_no_more(self):
        from engine.device import Device  # noqa: PLC0415  nothing else here needs torch

        torch = pytest.importorskip("torch")
        device = Device("cuda")
        ends, matrix = [], torch.randn(4096, 4096, device=device.name)
        for _ in range(8):
            for _ in range(20):
                matrix = (matrix @ matrix).softmax(1)
            ends.append(torch.cuda.Event())
            ends[-1].record()
            device.pace()
            assert all(end.query() for end in ends[:-1])
        assert not ends[-1].query()


class TestSeconds:
    @pytest.fixture
    def clock(self, monkeypatch):
        """Stands still unless it is told to go on."""
        now = [0.0]
        monkeypatch.setattr("time.perf_counter", lambda: now[0])

        def forward(seconds):
            now[0] += seconds

        return forward

    def test_each_call_takes_its_share_of_the_rounds_that_it_was_in(self, walk, clock):
        walk.meets = {number: lambda: clock(6) for number in (1, 2, 3, 4)}
        first, second, third = run(engine(walk.node), [steps(1, 3)], [[], [steps(2, 2), steps(3, 1)], [], []])
        assert [result.nodes["a"].seconds for result in (first, second, third)] == [6 + 2 + 3, 2 + 3, 2]
        assert walk.rounds == [[1], [1, 2, 3], [1, 2]]

    def test_whoever_loads_a_model_answers_for_it_alone_and_it_is_no_part_of_what_the_result_costs(self, walk, clock):
        def step(waiting):
            context = waiting[0]["context"]
            if waiting[0]["seed"] == 1 and not context.loading:
                clock(10)
                context.loading += 10
            clock(2)
            return Walk.step(walk, waiting)

        walk.step = step
        house = engine(walk.node)
        graphs = [steps(1, 2), steps(2, 2)]
        assert [result.nodes["a"].seconds for result in run(house, graphs)] == [14, 4]
        assert [house.run(each).nodes["a"].saved for each in graphs] == [4, 4]

    def test_an_attempt_that_ran_out_of_memory_takes_time_but_costs_nothing(self, walk, clock):
        def full():
            clock(5)
            raise MemoryError

        walk.meets = {1: full, 2: lambda: clock(3)}
        house = engine(walk.node)
        assert house.run(steps(1, 1)).nodes["a"].seconds == 8
        assert house.run(steps(1, 1)).nodes["a"].saved == 3
