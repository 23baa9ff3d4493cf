"""The rules of incremental execution, one test each: they assert the exact list of nodes that ran."""

import time
from typing import Annotated

import pytest
import toys
from annotated_types import Ge
from pydantic import SecretStr
from toys import LOG, Blob, Wave, engine, graph

from engine import errors
from engine.context import CancelToken, Context
from engine.event import NodeProgress, NodeStarted, Outcome, Trouble
from engine.file import Files
from engine.node import node
from engine.param import Fresh
from engine.plan import Verdict

CHAIN = {
    "photo": ("toy.blob", {"text": "fox"}),
    "start": ("toy.encode", {}, {"blob": "photo"}),
    "noise": ("toy.encode", {"weight": 7}, {"blob": "photo"}),
    "paint": ("toy.mix", {"amount": 0.75}, {"a": "start", "b": "noise"}),
    "decoded": ("toy.decode", {}, {"wave": "paint"}),
}
ALL = ["photo", "start", "noise", "paint", "decoded"]


def chain(**changes):
    return graph({"image": "decoded"}, {**CHAIN, **changes}, expose={"amount": "paint.amount"})


def ran(result):
    """What ran according to the report, checked against what was really called."""
    called = len(LOG)
    LOG.clear()
    assert called == len(result.ran())
    return result.ran()


@pytest.fixture(autouse=True)
def _fresh_log():
    LOG.clear()


def test_a_first_run_runs_everything_once():
    assert sorted(ran(engine().run(chain()))) == sorted(ALL)


def test_an_unchanged_graph_runs_nothing():
    house = engine()
    first = house.run(chain())
    LOG.clear()
    again = house.run(chain())
    assert ran(again) == []
    assert again["image"] == first["image"]


def test_changing_a_parameter_runs_exactly_its_dependants():
    house = engine()
    house.run(chain())
    LOG.clear()
    assert ran(house.run(chain().set(amount=0.5))) == ["paint", "decoded"]


def test_toggling_a_parameter_back_runs_nothing():
    house = engine()
    first = house.run(chain())
    house.run(chain().set(amount=0.5))
    LOG.clear()
    back = house.run(chain().set(amount=0.75))
    assert ran(back) == []
    assert back["image"] == first["image"]


def test_using_two_graphs_in_turn_runs_nothing():
    house, other = engine(), graph({"out": "b"}, {"a": ("toy.blob",), "b": ("toy.classify", {}, {"blob": "a"})})
    house.run(chain())
    house.run(other)
    LOG.clear()
    assert ran(house.run(chain())) == []
    assert ran(house.run(other)) == []


def test_renaming_and_reordering_nodes_runs_nothing():
    house = engine()
    house.run(chain())
    LOG.clear()
    renamed = graph(
        {"picture": "e"},
        {
            "e": ("toy.decode", {}, {"wave": "d"}),
            "d": ("toy.mix", {"amount": 0.75}, {"b": "c", "a": "b"}),
            "c": ("toy.encode", {"weight": 7}, {"blob": "a"}),
            "b": ("toy.encode", {}, {"blob": "a"}),
            "a": ("toy.blob", {"text": "fox"}),
        },
        meta={"title": "another title", "layout": {"a": [1, 2]}},
    )
    assert ran(house.run(renamed)) == []


def test_writing_a_default_out_runs_nothing():
    house = engine()
    house.run(chain())
    LOG.clear()
    written = chain(start=("toy.encode", {"weight": 100}, {"blob": "photo"}))
    assert ran(house.run(written)) == []


def test_an_int_written_for_a_float_runs_nothing():
    house = engine()
    house.run(chain().set(amount=1.0))
    LOG.clear()
    assert ran(house.run(chain().set(amount=1))) == []


def test_a_change_that_leaves_the_content_as_it_was_stops_there():
    house = engine()
    cut = {
        "a": ("toy.blob", {"text": "aa"}),
        "b": ("toy.classify", {}, {"blob": "a"}),
        "c": ("toy.encode", {}, {"blob": "b"}),
        "d": ("toy.decode", {}, {"wave": "c"}),
    }
    house.run(graph({"out": "d"}, cut))
    LOG.clear()
    result = house.run(graph({"out": "d"}, {**cut, "a": ("toy.blob", {"text": "bb"})}))
    assert ran(result) == ["a", "b"]
    assert [result.nodes[name].reason for name in "cd"] == ["cutoff", "cutoff"]


def test_two_equal_nodes_run_once():
    twins = {"a": ("toy.blob",), "b": ("toy.blob",), "c": ("toy.join", {}, {"blobs": ["a", "b"]})}
    assert ran(engine().run(graph({"out": "c"}, twins))) == ["a", "c"]


def test_two_equal_branches_run_once():
    twins = {
        "a": ("toy.blob",), "b": ("toy.blob",),
        "c": ("toy.encode", {}, {"blob": "a"}), "d": ("toy.encode", {}, {"blob": "b"}),
        "e": ("toy.decode", {}, {"wave": "c"}), "f": ("toy.decode", {}, {"wave": "d"}),
        "g": ("toy.join", {}, {"blobs": ["e", "f"]}),
    }  # fmt: skip
    assert len(ran(engine().run(graph({"out": "g"}, twins)))) == 4


def test_a_kept_result_needs_nothing_in_between():
    house = engine()
    first = house.run(chain())
    for identity in house.store.identities() - {first["image"].identity()}:
        house.store.drop_memory(identity)
    LOG.clear()
    again = house.run(chain())
    assert ran(again) == []
    assert again.nodes["paint"].outcome is Outcome.UNNEEDED


def test_an_evicted_result_is_made_again_from_the_nearest_values():
    house = engine()
    first = house.run(chain())
    house.store.drop_memory(first["image"].identity())
    LOG.clear()
    again = house.run(chain())
    assert ran(again) == ["decoded"]
    assert again.nodes["decoded"].reason == "evicted"


def test_evicting_everything_runs_everything_and_gives_the_same():
    house = engine()
    first = house.run(chain())
    for identity in house.store.identities():
        house.store.drop_memory(identity)
    LOG.clear()
    again = house.run(chain())
    assert sorted(ran(again)) == sorted(ALL)
    assert again["image"] == first["image"]


def test_only_what_the_requested_output_needs_runs():
    result = engine().run(chain(), ["start"])
    assert ran(result) == ["photo", "start"]
    assert result.nodes["decoded"].outcome is Outcome.UNNEEDED


class TestFiles:
    @pytest.fixture
    def files(self, tmp_path):
        (tmp_path / "fox.txt").write_text("fox")
        return Files([tmp_path])

    def loading(self, name="fox.txt"):
        return graph({"out": "b"}, {"a": ("toy.load", {"source": name}), "b": ("toy.encode", {}, {"blob": "a"})})

    def test_a_replaced_file_under_the_same_name_runs_its_dependants(self, files, tmp_path):
        house = engine(files=files)
        house.run(self.loading())
        (tmp_path / "fox.txt").write_text("owl")
        LOG.clear()
        result = house.run(self.loading())
        assert ran(result) == ["a", "b"]
        assert result.nodes["a"].reason == "file changed (source)"

    def test_the_same_bytes_under_another_name_run_nothing(self, files, tmp_path):
        house = engine(files=files)
        house.run(self.loading())
        (tmp_path / "copy.txt").write_text("fox")
        LOG.clear()
        assert ran(house.run(self.loading("copy.txt"))) == []

    def test_a_touched_file_runs_nothing(self, files, tmp_path):
        house = engine(files=files)
        house.run(self.loading())
        (tmp_path / "fox.txt").write_text("fox")
        LOG.clear()
        assert ran(house.run(self.loading())) == []

    def test_a_folder_that_was_renamed_or_copied_runs_nothing(self, files, tmp_path):
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "owl.txt").write_text("owl")
        with engine(files=Files([tmp_path / "one"]), cache=tmp_path / "cache") as house:
            house.run(self.loading("owl.txt"))
        (tmp_path / "one").rename(tmp_path / "two")
        LOG.clear()
        with engine(files=Files([tmp_path / "one", tmp_path / "two"]), cache=tmp_path / "cache") as house:
            assert ran(house.run(self.loading("owl.txt"))) == []
            (tmp_path / "one").mkdir()
            (tmp_path / "one" / "owl.txt").write_text("owl")
            assert ran(house.run(self.loading("owl.txt"))) == []
            (tmp_path / "one" / "owl.txt").write_text("elk")
            assert ran(house.run(self.loading("owl.txt"))) == ["a", "b"]

    @pytest.fixture
    def books(self, tmp_path):
        (tmp_path / "books").mkdir()
        (tmp_path / "books" / "fox.txt").write_text("fox")
        return tmp_path / "books"

    def reciting(self, poem):
        return graph({"out": "b"}, {"a": ("toy.recite", {"poem": poem}), "b": ("toy.encode", {}, {"blob": "a"})})

    @pytest.mark.parametrize(
        "change",
        [
            lambda books: (books / "fox.txt").write_text("another"),
            lambda books: (books / "fox.txt").unlink(),
            lambda books: (books / "owl.txt").write_text("new"),
        ],
        ids=["replaced", "gone", "new"],
    )
    def test_a_file_that_a_text_mentions_runs_its_dependants_when_it_changes_comes_or_goes(self, files, books, change):
        house = engine(files=files)
        house.run(self.reciting("owl fox"))
        change(books)
        LOG.clear()
        result = house.run(self.reciting("owl fox"))
        assert ran(result) == ["a", "b"]
        assert result.nodes["a"].reason == "file changed (poem)"

    def test_a_file_that_a_text_does_not_mention_runs_nothing(self, files, books):
        house = engine(files=files)
        house.run(self.reciting("fox"))
        (books / "owl.txt").write_text("new")
        LOG.clear()
        assert ran(house.run(self.reciting("fox"))) == []

    def test_another_text_is_another_parameter_even_where_it_mentions_the_same_files(self, files, books):
        house = engine(files=files)
        house.run(self.reciting("fox"))
        LOG.clear()
        result = house.run(self.reciting("a fox"))
        assert ran(result) == ["a", "b"]
        assert result.nodes["a"].reason == "parameter changed (poem: fox → a fox)"
        assert [part.name for part in result.files["a.poem"].parts] == ["fox"]

    def test_a_missing_file_is_refused_before_anything_runs(self, files):
        with pytest.raises(errors.GraphError, match=r"nodes\.a\.params\.source: no file .*did you mean .fox\.txt."):
            engine(files=files).run(self.loading("fix.txt"))
        assert LOG == []

    def test_a_file_that_changes_while_the_graph_runs_is_planned_again(self, files, tmp_path):
        @node("toy.replace", version=1)
        def replace(source: toys.File, path: str) -> Blob:
            """Overwrite the file, once, before reading it."""
            LOG.append("toy.replace")
            if source.path.read_text() == "fox":
                source.path.write_text("owl")
            return Blob(source.read().decode())

        house = engine(replace, files=files)
        listed = {"a": ("toy.replace", {"source": "fox.txt", "path": "x"}), "b": ("toy.encode", {}, {"blob": "a"})}
        result = house.run(graph({"blob": "a", "out": "b"}, listed))
        assert result["blob"] == Blob("owl")
        (tmp_path / "fox.txt").write_text("fox")
        assert house.plan(graph({"out": "a"}, listed))[0].verdict is Verdict.RUN, "nothing stands under the old key"


class TestRestart:
    def test_after_a_restart_nothing_runs(self, tmp_path):
        with engine(cache=tmp_path) as house:
            first = house.run(chain())
        LOG.clear()
        with engine(cache=tmp_path) as house:
            again = house.run(chain())
        assert ran(again) == []
        assert again["image"] == first["image"]

    def test_after_a_restart_a_change_runs_exactly_its_dependants_and_says_why(self, tmp_path):
        with engine(cache=tmp_path) as house:
            house.run(chain())
        LOG.clear()
        with engine(cache=tmp_path) as house:
            result = house.run(chain().set(amount=0.5))
        assert ran(result) == ["paint", "decoded"]
        assert result.nodes["paint"].reason == "parameter changed (amount: 0.75 → 0.5)"
        assert result.nodes["decoded"].reason == "input changed (wave)"

    def test_two_engines_share_one_folder_at_the_same_time(self, tmp_path):
        with engine(cache=tmp_path) as one, engine(cache=tmp_path) as two:
            one.run(chain())
            one.flush()
            LOG.clear()
            assert ran(two.run(chain())) == []

    def test_damaged_values_on_disk_are_made_again(self, tmp_path):
        with engine(cache=tmp_path) as house:
            first = house.run(chain())
        for path in tmp_path.glob("values/*/*"):
            data = bytearray(path.read_bytes())
            data[-3] ^= 1
            path.write_bytes(data)
        LOG.clear()
        with engine(cache=tmp_path) as house:
            again = house.run(chain())
        assert sorted(ran(again)) == sorted(ALL)
        assert again["image"] == first["image"]

    def test_another_version_of_a_node_runs_its_dependants(self, tmp_path):
        @node("toy.mix", version=2)
        def mix(a: Wave, b: Wave | None = None, amount: float = 0.5) -> Wave:
            """Mix, second edition."""
            LOG.append("toy.mix")
            return Wave(toys.mixed("second edition", a.text, b and b.text, amount))

        with engine(cache=tmp_path) as house:
            house.run(chain())
        LOG.clear()
        pack = [mix if function is toys.mix else function for function in toys.PACK]
        with toys.Engine(toys.Registry(pack), cache=tmp_path) as house:
            result = house.run(chain())
        assert ran(result) == ["paint", "decoded"]
        assert result.nodes["paint"].reason == "version changed (1 → 2)"

    def test_other_numerics_share_nothing(self, tmp_path):
        with engine(cache=tmp_path) as house:
            house.run(chain())
        LOG.clear()
        with engine(cache=tmp_path, numerics={"torch": "other"}) as house:
            assert sorted(ran(house.run(chain()))) == sorted(ALL)
        for mode in ("exact", "compiled"):
            with engine(cache=tmp_path, **{mode: True}) as house:
                assert sorted(ran(house.run(chain()))) == sorted(ALL)

    def test_exact_results_are_not_compiled(self):
        with pytest.raises(ValueError, match="exact, compiled: expected one of them at most"):
            engine(exact=True, compiled=True)


class TestFailure:
    @pytest.fixture
    def house(self):
        @node("toy.picky", version=1)
        def picky(blob: Blob, *, allowed: bool = False) -> Blob:
            """Fails unless allowed."""
            LOG.append("toy.picky")
            if not allowed:
                raise ValueError("not today")
            return Blob("picked " + blob.text)

        return engine(picky)

    def branches(self, *, allowed):
        return graph(
            {"left": "d", "right": "c"},
            {
                "a": ("toy.blob",),
                "b": ("toy.picky", {"allowed": allowed}, {"blob": "a"}),
                "c": ("toy.classify", {}, {"blob": "a"}),
                "d": ("toy.encode", {}, {"blob": "b"}),
            },
        )

    def test_an_independent_branch_survives_a_failure(self, house):
        result = house.run(self.branches(allowed=False), check=False)
        assert result.outputs.keys() == {"right"}
        assert {name: result.nodes[name].outcome for name in "abcd"} == {
            "a": Outcome.RAN, "b": Outcome.FAILED, "c": Outcome.RAN, "d": Outcome.FAILED,
        }  # fmt: skip
        assert result.nodes["d"].reason == "input failed (b)"

    def test_a_failure_names_the_node_and_keeps_the_cause(self, house):
        with pytest.raises(errors.RunFailed, match=r"b \(toy\.picky\): ValueError: not today") as caught:
            house.run(self.branches(allowed=False))
        assert isinstance(caught.value.failures["b"].__cause__, ValueError)

    def test_a_failed_node_leaves_no_trace_and_what_finished_is_kept(self, house):
        house.run(self.branches(allowed=False), check=False)
        LOG.clear()
        house.run(self.branches(allowed=False), check=False)
        assert LOG == ["toy.picky"]
        LOG.clear()
        assert ran(house.run(self.branches(allowed=True))) == ["b", "d"]

    def test_an_output_that_breaks_its_type_is_refused(self):
        @node("toy.liar", version=1)
        def liar(text: str = "x") -> Blob:
            """Returns a wave."""
            return Wave(text)

        with pytest.raises(errors.RunFailed, match=r"toy\.liar returned Wave as 'out', expected Blob"):
            engine(liar).run(graph({"out": "a"}, {"a": ("toy.liar",)}))

    def test_a_linked_value_out_of_range_names_the_parameter(self):
        nodes = {
            "n": ("toy.number", {"value": 12}), "b": ("toy.blob",),
            "c": ("toy.classify", {}, {"blob": "b", "classes": "n"}),
        }  # fmt: skip
        with pytest.raises(errors.RunFailed, match=r"parameter 'classes' from its link.*got 12.*range 1..9"):
            engine().run(graph({"out": "c"}, nodes))


class TestCancel:
    def stepping(self, count=5):
        nodes = {
            "a": ("toy.blob",), "b": ("toy.encode", {}, {"blob": "a"}),
            "c": ("toy.steps", {"count": count}, {"wave": "b"}), "d": ("toy.decode", {}, {"wave": "c"}),
        }  # fmt: skip
        return graph({"out": "d"}, nodes)

    def test_a_cancelled_node_leaves_no_trace_and_what_finished_is_kept(self):
        house, token = engine(), CancelToken()

        def listener(event):
            if isinstance(event, NodeProgress) and event.done == 2:
                token.cancel()

        with pytest.raises(errors.Cancelled):
            house.run(self.stepping(), listener=listener, token=token)
        LOG.clear()
        assert ran(house.run(self.stepping())) == ["c", "d"]

    def test_cancelling_stops_at_the_next_step(self):
        token, seen = CancelToken(), []

        def listener(event):
            if isinstance(event, NodeProgress):
                seen.append(event.done)
                token.cancel()

        with pytest.raises(errors.Cancelled):
            engine().run(self.stepping(100), listener=listener, token=token)
        assert seen == [0]

    def test_a_cancelled_token_runs_nothing(self):
        token = CancelToken()
        token.cancel()
        with pytest.raises(errors.Cancelled):
            engine().run(self.stepping(), token=token)
        assert LOG == []


class TestPlan:
    def verdicts(self, house, document):
        return {item.node: (str(item.verdict), item.reason) for item in house.plan(document)}

    def test_a_plan_runs_nothing_and_says_why(self):
        house = engine()
        assert self.verdicts(house, chain())["photo"] == ("run", "first run")
        house.run(chain())
        LOG.clear()
        assert self.verdicts(house, chain().set(amount=0.5)) == {
            "photo": ("hit", "hit"),
            "start": ("hit", "hit"),
            "noise": ("hit", "hit"),
            "paint": ("run", "parameter changed (amount: 0.75 → 0.5)"),
            "decoded": ("run", "input changed (wave)"),
        }
        assert LOG == []

    def test_what_depends_on_unknown_content_may_run(self):
        plan = self.verdicts(engine(), chain())
        assert plan["start"] == ("may run", "input may change (blob)")

    def test_what_something_that_may_run_would_need_may_run_too(self):
        house = engine()
        house.run(chain(), ["photo"])
        nodes = {name: CHAIN[name] for name in ("photo", "start", "noise", "paint")}
        nodes |= {"share": ("toy.number", {"value": 1}), "half": ("toy.mix", {}, {"a": "paint", "b": "paint"})}
        nodes["half"][2]["amount"] = "share"
        made = graph({"wave": "half"}, nodes)
        assert self.verdicts(house, made) == {
            "photo": ("hit", "hit"),
            "start": ("may run", "first run"),
            "noise": ("may run", "first run"),
            "paint": ("may run", "first run"),
            "share": ("run", "first run"),
            "half": ("may run", "input may change (amount)"),
        }
        assert sorted(house.run(made).ran()) == ["half", "noise", "paint", "share", "start"]

    def test_a_plan_leaves_the_engine_as_it_was(self):
        house = engine()
        house.plan(chain())
        assert sorted(ran(house.run(chain()))) == sorted(ALL)

    def test_each_cause_of_a_run_is_named(self):
        house = engine()
        house.run(chain())
        result = house.run(chain(photo=("toy.blob", {"text": "owl"})))
        assert result.nodes["photo"].reason == "parameter changed (text: fox → owl)"
        assert result.nodes["start"].reason == "input changed (blob)"
        result = house.run(chain(paint=("toy.mix", {"amount": 0.75}, {"a": "noise", "b": "start"})))
        assert result.nodes["paint"].reason == "input changed (a, b)"


class TestStore:
    def test_a_budget_is_never_exceeded_by_what_is_not_needed(self):
        house = engine(memory=1000)
        held = []
        for amount in range(20):
            house.run(
                chain().set(amount=amount / 20), listener=lambda _: held.append(house.store.statement()["device"])
            )
        assert max(held) <= 1000

    def test_values_that_the_running_graph_needs_are_not_evicted(self):
        result = engine(memory=0).run(chain())
        assert sorted(ran(result)) == sorted(ALL)

    def test_a_value_that_falls_out_of_memory_is_found_on_disk(self, tmp_path):
        with engine(memory=0, cache=tmp_path) as house:
            house.run(chain())
            house.flush()
            LOG.clear()
            assert ran(house.run(chain())) == []

    def test_a_sweep_does_not_flush_what_an_evening_comes_back_to(self):
        house = engine(memory=2000)
        for _ in range(3):
            house.run(chain())
            house.run(chain().set(amount=0.5))
        for seed in range(50):
            house.run(graph({"out": "a"}, {"a": ("toy.blob", {"text": f"cell {seed}"})}))
        LOG.clear()
        house.run(chain(paint=("toy.mix", {"amount": 0.1}, {"a": "start", "b": "noise"})))
        assert LOG == ["toy.mix", "toy.decode"]


class TestGuards:
    def test_a_node_that_writes_into_its_input_is_named_and_the_cache_unharmed(self):
        @toys.dataclass(frozen=True)
        class Page(toys.Socket):
            """Can be written into."""

            lines: list[str]

            def stamp(self):
                return tuple(self.lines)

        @node("toy.page", version=1)
        def page(text: str = "x") -> Page:
            """A page."""
            return Page([text])

        @node("toy.scribble", version=1)
        def scribble(page: Page) -> toys.Text:
            """Writes where it should read."""
            page.lines.append("scribble")
            return toys.Text("done")

        @node("toy.count", version=1)
        def count(page: Page) -> toys.Int:
            """How many lines."""
            return toys.Int(len(page.lines))

        house = engine(page, scribble, count)
        nodes = {"a": ("toy.page",), "b": ("toy.scribble", {}, {"page": "a"})}
        with pytest.raises(
            errors.RunFailed, match=r"b \(toy\.scribble\): InputMutated: it wrote into its input 'page'"
        ):
            house.run(graph({"out": "b"}, nodes))
        result = house.run(graph({"out": "c"}, {"a": ("toy.page",), "c": ("toy.count", {}, {"page": "a"})}))
        assert result["out"] == toys.Int(1)

    def test_a_value_made_again_differently_is_an_error_in_tests_and_reported_otherwise(self):
        calls = []

        @node("toy.moody", version=1)
        def moody(text: str = "x") -> Blob:
            """Never the same twice."""
            calls.append(text)
            return Blob(f"{text} {len(calls)}")

        document = graph({"out": "a"}, {"a": ("toy.moody",)})
        for strict in (True, False):
            house, events = engine(moody, strict=strict), []
            first = house.run(document)["out"]
            house.store.drop_memory(first.identity())
            if strict:
                with pytest.raises(errors.RunFailed, match="NotDeterministic"):
                    house.run(document)
            else:
                house.run(document, listener=events.append)
                assert any(isinstance(event, Trouble) and event.node == "a" for event in events)

    def test_a_difference_in_the_last_bits_causes_no_cascade(self):
        calls = []

        @node("toy.moody", version=1)
        def moody(text: str = "x") -> Blob:
            """Never the same twice."""
            calls.append(text)
            return Blob(f"{text} {len(calls)}")

        house = engine(moody, strict=False)
        nodes = {"a": ("toy.moody",), "b": ("toy.encode", {}, {"blob": "a"}), "c": ("toy.decode", {}, {"wave": "b"})}
        house.run(graph({"out": "c"}, nodes))
        house.store.drop_memory(Blob("x 1").identity())
        LOG.clear()
        other = {**nodes, "d": ("toy.join", {}, {"blobs": ["a", "c"]})}
        house.run(graph({"out": "d"}, other))
        assert LOG == ["toy.join"]


class TestMemoryLadder:
    def test_a_node_that_runs_out_of_memory_is_tried_once_more_after_everything_unpinned_went(self):
        held = []

        @node("toy.hungry", version=1)
        def hungry(blob: Blob) -> Blob:
            """Needs an empty house."""
            held.append(house.store.statement()["device"])
            if len(held) == 1:
                raise MemoryError
            return Blob("fed")

        house = engine(hungry)
        house.run(chain())
        result = house.run(graph({"out": "h"}, {"a": ("toy.blob",), "h": ("toy.hungry", {}, {"blob": "a"})}))
        assert result["out"] == Blob("fed")
        assert held[0] > held[1] == Blob("a").nbytes()

    def test_a_node_that_never_fits_ends_with_the_ledger(self):
        @node("toy.hungry", version=1)
        def hungry(text: str = "x") -> Blob:
            """Never enough."""
            raise MemoryError

        with pytest.raises(errors.RunFailed, match=r"OutOfMemory: out of memory on cpu after freeing .*values"):
            engine(hungry).run(graph({"out": "h"}, {"h": ("toy.hungry",)}))

    def tiled(self, attempts, *, hungry=True):
        """A node that works in tiles once memory was short."""

        @node("toy.tiled", version=1)
        def tiled(blob: Blob, context: Context) -> Blob:
            """Memory runs out, unless it works in tiles."""
            attempts.append(context.scarce)
            if hungry and not context.scarce:
                raise MemoryError
            return Blob("tiled" if context.scarce else "whole")

        return tiled

    def one(self):
        return graph({"out": "t"}, {"a": ("toy.blob",), "t": ("toy.tiled", {}, {"blob": "a"})})

    def test_a_node_is_told_that_memory_was_short_and_its_result_is_kept_as_any_other(self):
        attempts = []
        house = engine(self.tiled(attempts))
        assert house.run(self.one())["out"] == Blob("tiled")
        assert attempts == [False, False, True]
        assert house.run(self.one()).ran() == []

    def test_in_exact_mode_memory_is_never_said_to_be_short(self):
        attempts = []
        result = engine(self.tiled(attempts), exact=True).run(self.one(), check=False)
        assert "OutOfMemory" in result.nodes["t"].reason
        assert attempts == [False, False]

    def test_what_is_made_again_in_pieces_is_kept_under_what_it_was_known_as(self, tmp_path):
        with engine(self.tiled([], hungry=False), cache=tmp_path, disk=0) as house:
            whole = house.run(self.one())["out"]
        events = []
        with engine(self.tiled([]), cache=tmp_path, disk=0) as house:
            result = house.run(self.one(), listener=events.append)
            assert (whole, result["out"]) == (Blob("whole"), Blob("tiled"))
            assert result.identities["out"] == whole.identity()
        assert [event.node for event in events if isinstance(event, Trouble)] == ["t"]


class TestFusion:
    @pytest.fixture
    def groups(self):
        return []

    @pytest.fixture
    def pack(self, groups):
        def many(calls):
            groups.append([call["seed"] for call in calls])
            if len(calls) > 4:
                raise MemoryError
            odd = ValueError("odd one out")
            yield {i: odd if call["seed"] == 13 else toys.Wave(f"{call['seed']}") for i, call in enumerate(calls)}

        @node("toy.sample", version=1, many=many)
        def sample(wave: Wave, seed: int) -> Wave:
            """May be fused."""
            groups.append(seed)
            return toys.Wave(f"{seed}")

        return sample

    def cells(self, seeds):
        nodes = {"a": ("toy.blob",), "w": ("toy.encode", {}, {"blob": "a"})}
        for seed in seeds:
            nodes[f"s{seed}"] = ("toy.sample", {"seed": seed}, {"wave": "w"})
            nodes[f"d{seed}"] = ("toy.decode", {}, {"wave": f"s{seed}"})
        return graph({f"out{seed}": f"d{seed}" for seed in seeds}, nodes)

    def test_pending_calls_of_one_type_run_together(self, pack, groups):
        engine(pack).run(self.cells([1, 2, 3]))
        assert groups == [[1, 2, 3]]

    def test_only_the_missing_ones_are_called(self, pack, groups):
        house = engine(pack)
        house.run(self.cells([1, 2, 3]))
        house.run(self.cells([1, 2, 3, 4, 5]))
        assert groups == [[1, 2, 3], [4, 5]]

    def test_exact_mode_never_fuses(self, pack, groups):
        engine(pack, exact=True).run(self.cells([1, 2, 3]))
        assert sorted(groups) == [1, 2, 3]

    def test_a_failing_member_does_not_take_the_others_with_it(self, pack):
        result = engine(pack).run(self.cells([1, 13, 2]), check=False)
        assert result.outputs.keys() == {"out1", "out2"}
        assert result.failures.keys() == {"s13"}

    def test_a_group_that_does_not_fit_is_halved(self, pack, groups):
        result = engine(pack).run(self.cells([1, 2, 3, 4, 5, 6]))
        assert len(result.outputs) == 6
        assert groups == [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [1, 2, 3], [4, 5, 6]]

    def test_a_group_is_halved_until_one_is_alone_and_only_then_told_that_memory_is_short(self):
        groups = []

        def many(calls):
            scarce = [call["context"].scarce for call in calls]
            groups.append(([call["seed"] for call in calls], *scarce))
            if len(calls) > 1 or (calls[0]["seed"] == 1 and not scarce[0]):
                raise MemoryError
            yield {0: toys.Wave(f"{calls[0]['seed']}")}

        @node("toy.sample", version=1, many=many)
        def sample(wave: Wave, seed: int, context: Context) -> Wave:
            """One fits in pieces, the other as a whole."""
            raise AssertionError("calls that may be fused are made by the companion")

        result = engine(sample).run(self.cells([1, 2]))
        assert len(result.outputs) == 2
        both = ([1, 2], False, False)
        assert groups == [both, both, ([1], False), ([1], False), ([1], True), ([2], False)]


def test_bound_arguments_are_known_by_content():
    house = engine()
    document = graph({"out": "b"}, {"b": ("toy.encode", {}, {"blob": "$image"})}, arguments={"image": "Blob"})
    assert ran(house.run(document, arguments={"image": Blob("fox")})) == ["b"]
    assert ran(house.run(document, arguments={"image": Blob("fox")})) == []
    assert ran(house.run(document, arguments={"image": Blob("owl")})) == ["b"]
    assert ran(house.run(chain())) == ["photo", "start", "noise", "paint", "decoded"] or LOG == []


def test_one_more_value_on_an_axis_runs_only_its_cells():
    house = engine()

    def swept(values):
        return graph({"out": "decoded"}, CHAIN, sweep={"x": {"paint.amount": values}})

    house.run(swept([0.25, 0.5]))
    LOG.clear()
    assert ran(house.run(swept([0.25, 0.5, 0.75]))) == ["paint[x2]", "decoded[x2]", "grid:out"]


def test_fresh_seeds_are_drawn_at_each_submission_and_written_into_the_graph():
    @node("toy.draw", version=1)
    def draw(seed: Annotated[int, Ge(-1), Fresh(-1, 1 << 32)] = -1) -> Blob:
        """A fresh seed."""
        LOG.append("toy.draw")
        return Blob(str(seed))

    house, document = engine(draw), graph({"out": "a"}, {"a": ("toy.draw",)})
    first, second = house.run(document), house.run(document)
    assert first["out"] != second["out"]
    written = first.graph.dump()["nodes"]["a"]["params"]["seed"]
    assert first["out"] == Blob(str(written))
    LOG.clear()
    assert ran(house.run(first.graph)) == []


def test_events_tell_the_story_in_order():
    events = []
    engine().run(chain(), listener=events.append)
    started = [event.node for event in events if isinstance(event, NodeStarted)]
    assert sorted(started) == sorted(ALL)
    assert type(events[0]).__name__ == "RunStarted"
    assert type(events[-1]).__name__ == "RunFinished"
    assert events[-1].state == "done"


def test_a_chain_of_thousands_neither_recurses_nor_slows_down():
    nodes = {"n0": ("toy.blob",), **{f"n{i}": ("toy.classify", {}, {"blob": f"n{i - 1}"}) for i in range(1, 3000)}}
    house, document = engine(), graph({"out": "n2999"}, nodes)
    assert house.run(document)["out"]
    began = time.perf_counter()
    house.plan(document)
    assert time.perf_counter() - began < 1


class TestSubtleties:
    def test_a_node_that_changes_its_own_parameters_harms_nobody(self):
        @node("toy.greedy", version=1)
        def greedy(blob: Blob, items: list[str] = ["x"]) -> Blob:  # noqa: B006  the point of the test
            """Appends to what it was given."""
            items.append("y")
            return Blob(blob.text + "".join(items))

        house = engine(greedy)
        for text in ("a", "b"):
            nodes = {"a": ("toy.blob", {"text": text}), "g": ("toy.greedy", {}, {"blob": "a"})}
            assert house.run(graph({"out": "g"}, nodes))["out"] == Blob(f"{text}xy")

    def test_a_node_that_gains_an_output_is_another_node(self, tmp_path):
        @node("toy.parts", version=1)
        def parts(text: str = "x") -> Blob:
            """One output."""
            return Blob(text)

        one = parts

        @node("toy.parts", version=1)
        def parts(text: str = "x") -> toys.Parts:
            """Two outputs, by oversight under the same version."""
            return toys.Parts(Blob(text), Wave(text))

        with engine(one, cache=tmp_path) as house:
            house.run(graph({"out": "p"}, {"p": ("toy.parts",)}))
        with engine(parts, cache=tmp_path) as house:
            assert house.run(graph({"out": "p.tail"}, {"p": ("toy.parts",)}))["out"] == Wave("x")

    def test_equal_nodes_that_fail_are_both_reported(self):
        @node("toy.never", version=1)
        def never(text: str = "x") -> Blob:
            """Always fails."""
            raise ValueError("never")

        nodes = {
            "b": ("toy.never",), "c": ("toy.never",),
            "d": ("toy.encode", {}, {"blob": "b"}), "e": ("toy.encode", {}, {"blob": "c"}),
        }  # fmt: skip
        result = engine(never).run(graph({"d": "d", "e": "e"}, nodes), check=False)
        assert {str(report.outcome) for report in result.nodes.values()} == {"failed"}
        assert result.nodes["e"].reason == "input failed (c)"

    def test_equal_nodes_of_a_first_run_are_hits_not_cutoffs(self):
        nodes = {
            "a": ("toy.blob",), "b": ("toy.classify", {}, {"blob": "a"}), "c": ("toy.classify", {}, {"blob": "a"}),
            "d": ("toy.join", {}, {"blobs": ["b", "c"]}),
        }  # fmt: skip
        result = engine().run(graph({"out": "d"}, nodes))
        assert sorted(result.nodes[name].reason for name in "bc") == ["first run", "hit"]

    def test_a_changed_file_is_one_story_for_the_listener(self, tmp_path):
        (tmp_path / "fox.txt").write_text("fox")

        @node("toy.replace", version=1)
        def replace(source: toys.File) -> Blob:
            """Overwrite the file, once, before reading it."""
            if source.path.read_text() == "fox":
                source.path.write_text("owl")
            return Blob(source.read().decode())

        events = []
        house = engine(replace, files=Files([tmp_path]))
        house.run(graph({"out": "a"}, {"a": ("toy.replace", {"source": "fox.txt"})}), listener=events.append)
        names = [type(event).__name__ for event in events]
        assert (names.count("RunStarted"), names.count("RunFinished")) == (1, 1)
        assert any(isinstance(event, Trouble) and "planned again" in event.message for event in events)
        assert len({event.run for event in events}) == 1

    def test_the_budget_holds_again_when_a_run_is_over(self):
        house = engine(memory=150)
        house.run(chain())
        assert house.store.statement()["device"] <= 150

    def test_a_linked_number_draws_no_seed(self):
        @node("toy.draw", version=1)
        def draw(seed: Annotated[int, Ge(-1), Fresh(-1, 1 << 32)] = -1) -> Blob:
            """A fresh seed."""
            return Blob(str(seed))

        nodes = {"n": ("toy.number", {"value": -1}), "a": ("toy.draw", {}, {"seed": "n"})}
        with pytest.raises(errors.RunFailed, match="-1 draws a number only where it is a literal"):
            engine(draw).run(graph({"out": "a"}, nodes))


class TestReviewedHazards:
    def test_a_value_that_somebody_wrote_into_between_runs_is_made_again(self):
        @toys.dataclass(frozen=True)
        class Page(toys.Socket):
            """Can be written into."""

            lines: list[str]

            def stamp(self):
                return tuple(self.lines)

        @node("toy.page", version=1)
        def page(text: str = "x") -> Page:
            """A page."""
            return Page([text])

        house = engine(page)
        document = graph({"out": "a"}, {"a": ("toy.page",)})
        house.run(document)["out"].lines.append("scribble")
        assert house.run(document)["out"].lines == ["x"]

    def test_a_whole_file_of_another_value_is_a_miss(self, tmp_path):
        nodes = {"a": ("toy.blob", {"text": "a"}), "b": ("toy.blob", {"text": "b"})}
        document = graph({"a": "a", "b": "b"}, nodes)
        with engine(cache=tmp_path) as house:
            house.run(document)
        one, other = sorted(tmp_path.glob("values/*/*"))
        data = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(data)
        with engine(cache=tmp_path) as house:
            assert dict(house.run(document).outputs) == {"a": Blob("a"), "b": Blob("b")}

    def test_a_linked_number_that_is_whole_stands_for_a_whole_parameter(self):
        @node("toy.half", version=1)
        def half(value: float = 0.0) -> toys.Float:
            """A number."""
            return toys.Float(value)

        def mixed(value):
            nodes = {
                "n": ("toy.half", {"value": value}), "b": ("toy.blob",),
                "c": ("toy.classify", {}, {"blob": "b", "classes": "n"}),
            }  # fmt: skip
            return engine(half).run(graph({"out": "c"}, nodes))["out"]

        assert mixed(3) == mixed(3.0)
        with pytest.raises(errors.RunFailed, match=r"parameter 'classes' from its link: .*got 2\.5"):
            mixed(2.5)

    def test_two_exposed_names_of_one_parameter_cannot_both_be_set(self):
        inner = {
            "format": "calotype/1",
            "nodes": {"t": {"type": "toy.number"}},
            "expose": {"a": "t.value", "b": "t.value"},
            "outputs": {"out": "t"},
        }
        outer = {"s": {"type": "graph", "graph": inner, "params": {"a": 1, "b": 2}}}
        document = toys.Graph.parse({"format": "calotype/1", "nodes": outer, "outputs": {"out": "s"}})
        with pytest.raises(errors.GraphError, match=r"another exposed name sets t\.value too"):
            engine().run(document)
        chosen = document.set({"s.b": 7})
        again = toys.Graph.parse(chosen.dump())
        assert engine().run(chosen)["out"] == engine().run(again)["out"] == toys.Int(7)

    def test_a_parameter_whose_json_hides_something_is_refused(self):
        with pytest.raises(errors.DefinitionError, match="leaves something out"):

            @node("toy.secret", version=1)
            def secret(key: SecretStr = SecretStr("x")) -> Blob:  # noqa: B008
                """Keeps a secret from the key."""
                return Blob(key.get_secret_value())

    def test_every_problem_of_a_sweep_is_told_also_by_a_run(self):
        document = graph({"out": "decoded"}, CHAIN, sweep={"x": {"paint.amuont": [1]}, "y": {"nowhere": [1]}})
        with pytest.raises(errors.GraphError) as refused:
            engine().run(document)
        assert len(refused.value.problems) >= 2
