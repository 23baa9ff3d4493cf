"""The pool: a module is loaded once, stays while it is held, and goes when its bytes are wanted."""

import gc
import os
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.budget import Ledger
from engine.context import Context
from engine.errors import FileChanged
from engine.file import File, Files
from engine.models import ModelPool, ModelRef
from engine.socket import Socket

LOADED = []
"""(name, place) of every module that was loaded."""


class Module:
    """Weights."""

    def __init__(self, name):
        self.name = name


@dataclass(frozen=True)
class Ref(ModelRef[Module]):
    """Describes one."""

    name: str
    size: int = 10
    broken: bool = False

    def load(self, files, place):
        LOADED.append((self.name, place))
        if self.broken:
            raise FileChanged(f"{self.name} changed")
        return Module(self.name)

    def module_bytes(self, module):
        return self.size


@pytest.fixture(autouse=True)
def _nothing_loaded():
    LOADED.clear()


@pytest.fixture
def pool():
    return ModelPool(Files(), Ledger("gpu", 25))


def use(pool, *names, **more):
    """Ask for models and give them back, as a node does."""
    for name in names:
        pool.acquire(Ref(name, **more), "gpu")
        pool.release(Ref(name, **more))


def loaded():
    found = [name for name, _ in LOADED]
    LOADED.clear()
    return found


def test_a_model_is_loaded_once_and_shared(pool):
    one, other = pool.acquire(Ref("unet"), "gpu"), pool.acquire(Ref("unet"), "gpu")
    assert one is other
    assert LOADED == [("unet", "gpu")]


def test_a_model_that_was_given_back_stays_while_there_is_room(pool):
    use(pool, "unet", "vae", "unet", "vae")
    assert loaded() == ["unet", "vae"]


def test_whatever_changes_the_module_makes_it_another(pool):
    one, other = pool.acquire(Ref("unet", size=5), "gpu"), pool.acquire(Ref("unet", size=6), "gpu")
    assert one is not other


def test_its_bytes_are_under_the_ledger(pool):
    use(pool, "unet", "vae")
    assert pool.held() == 20
    assert pool.here.ledger.statement() == {"models": 20, "capacity": 25}


def test_when_the_budget_is_full_a_model_that_nobody_holds_goes(pool):
    use(pool, "unet", "vae", "clip")
    assert pool.held() == 20
    use(pool, "clip")
    assert loaded() == ["unet", "vae", "clip"]


def test_a_model_that_was_given_up_is_loaded_again_when_it_is_asked_for(pool):
    use(pool, "unet")
    pool.here.ledger.free_everything()
    assert pool.held() == 0
    use(pool, "unet")
    assert loaded() == ["unet", "unet"]


def test_a_model_that_was_given_up_is_really_gone(pool):
    seen = weakref.ref(pool.acquire(Ref("unet"), "gpu"))
    pool.release(Ref("unet"))
    assert seen() is not None
    pool.here.give_up()
    gc.collect()
    assert seen() is None


def test_a_model_that_is_held_never_goes(pool):
    held = [pool.acquire(Ref(name), "gpu") for name in ("unet", "vae", "clip")]
    assert pool.held() == 30 > pool.here.ledger.capacity
    assert pool.here.cheapest() is None
    assert (pool.here.give_up(), pool.here.ledger.free_everything()) == (0, 0)
    assert [module.name for module in held] == ["unet", "vae", "clip"]


def test_a_model_held_twice_stays_until_both_gave_it_back(pool):
    for _ in range(2):
        pool.acquire(Ref("unet"), "gpu")
    pool.release(Ref("unet"))
    assert pool.here.cheapest() is None
    pool.release(Ref("unet"))
    assert pool.here.cheapest() is not None


def test_the_model_that_was_just_loaded_is_not_the_one_that_goes(pool):
    pool.acquire(Ref("unet"), "gpu")
    pool.acquire(Ref("vae"), "gpu")
    pool.release(Ref("unet"))
    fresh = pool.acquire(Ref("clip"), "gpu")
    assert fresh.name == "clip"
    assert pool.held() == 20
    use(pool, "clip", "vae")
    assert loaded() == ["unet", "vae", "clip"]


def test_a_model_larger_than_the_budget_is_still_loaded(pool):
    assert pool.acquire(Ref("unet", size=1000), "gpu").name == "unet"
    pool.release(Ref("unet", size=1000))
    assert pool.here.ledger.make_room()
    assert pool.held() == 0


def test_a_model_that_cannot_be_loaded_leaves_nothing_behind(pool):
    for _ in range(2):
        with pytest.raises(FileChanged, match="unet changed"):
            pool.acquire(Ref("unet", broken=True), "gpu")
    assert (loaded(), pool.held(), pool.here.cheapest()) == (["unet", "unet"], 0, None)


def test_models_and_values_compete_for_one_budget(pool):
    class Values:
        name = "values"
        size = 20

        def held(self):
            return self.size

        def cheapest(self):
            return 0.0 if self.size else None

        def give_up(self):
            freed, self.size = self.size, 0
            return freed

    values = Values()
    pool.here.ledger.join(values)
    pool.acquire(Ref("unet"), "gpu")
    assert values.size == 0


@dataclass(frozen=True)
class Patched(ModelRef[Module]):
    """Another module on the tensors of one, with some of its own."""

    name: str
    size: int = 2
    of: Ref = Ref("unet")
    broken: bool = False

    @property
    def base(self):
        return self.of

    def load(self, files, place):
        raise AssertionError("it is made of its base")

    def patched(self, module, files, place):
        LOADED.append((f"{self.name} on {module.name}", place))
        if self.broken:
            raise FileChanged(f"{self.name} changed")
        return Module(self.name)

    def module_bytes(self, module):
        return self.size


class TestPatched:
    def test_it_is_made_of_its_base_which_is_loaded_once_for_all(self, pool):
        for name in ("lora", "other", "lora"):
            pool.acquire(Patched(name), "gpu")
        pool.acquire(Ref("unet"), "gpu")
        assert LOADED == [("unet", "gpu"), ("lora on unet", "gpu"), ("other on unet", "gpu")]

    def test_only_its_own_bytes_come_on_top(self, pool):
        pool.acquire(Patched("lora"), "gpu")
        assert pool.held() == 12

    def test_its_base_stays_as_long_as_it_does(self, pool):
        pool.acquire(Patched("lora"), "gpu")
        assert (pool.here.cheapest(), pool.here.give_up()) == (None, 0)
        pool.release(Patched("lora"))
        assert (pool.here.give_up(), pool.here.give_up(), pool.here.give_up()) == (2, 10, 0)

    def test_a_base_that_is_held_alone_outlives_it(self, pool):
        pool.acquire(Patched("lora"), "gpu")
        pool.acquire(Ref("unet"), "gpu")
        pool.release(Patched("lora"))
        assert pool.here.ledger.free_everything() == 2
        pool.release(Ref("unet"))
        assert pool.here.ledger.free_everything() == 10

    def test_a_base_may_have_a_base(self, pool):
        pool.acquire(Patched("skipping", size=0, of=Patched("lora")), "gpu")
        assert loaded() == ["unet", "lora on unet", "skipping on lora"]
        pool.release(Patched("skipping", size=0, of=Patched("lora")))
        assert (pool.held(), pool.here.ledger.free_everything(), pool.held()) == (12, 12, 0)

    def test_when_bytes_are_wanted_it_goes_before_a_base_that_others_use(self, pool):
        use(pool, "unet")
        for name in ("one", "two", "three"):
            pool.acquire(Patched(name, size=6), "gpu")
            pool.release(Patched(name, size=6))
        use(pool, "unet")
        assert loaded() == ["unet", "one on unet", "two on unet", "three on unet"]

    def test_one_that_cannot_be_made_lets_go_of_its_base(self, pool):
        with pytest.raises(FileChanged, match="lora changed"):
            pool.acquire(Patched("lora", broken=True), "gpu")
        assert pool.here.ledger.free_everything() == 10


class TestContext:
    def test_a_node_holds_its_models_until_it_returns(self, pool):
        context = Context(device="gpu", models=pool)
        assert context.model(Ref("unet")).name == "unet"
        assert context.model(Ref("vae")).name == "vae"
        assert pool.here.cheapest() is None
        context.release()
        assert pool.here.ledger.free_everything() == 20

    def test_giving_back_twice_gives_back_once(self, pool):
        pool.acquire(Ref("unet"), "gpu")
        context = Context(device="gpu", models=pool)
        context.model(Ref("unet"))
        context.release()
        context.release()
        assert pool.here.cheapest() is None

    def test_a_model_that_cannot_be_loaded_is_not_given_back(self, pool):
        context = Context(device="gpu", models=pool)
        with pytest.raises(FileChanged):
            context.model(Ref("unet", broken=True))
        context.release()
        pool.acquire(Ref("unet"), "gpu")
        assert pool.here.cheapest() is None

    def test_a_notebook_needs_no_pool(self):
        context = Context()
        assert context.model(Ref("unet")) is context.model(Ref("unet"))
        assert LOADED == [("unet", "cpu")]


@dataclass(frozen=True)
class Written(ModelRef[Module]):
    """A module that is what a file holds; while it is read, `MEANWHILE` happens."""

    digest: str

    def load(self, files, place):
        LOADED.append((self.digest, place))
        path = files.locate(bytes.fromhex(self.digest))
        name = path.read_text()
        for happen in MEANWHILE:
            happen(path)
        return Module(name)

    def module_bytes(self, module):
        return 1


MEANWHILE = []


class TestFiles:
    """A module is what the files hold that its reference was made of, or it is not kept."""

    @pytest.fixture
    def files(self, tmp_path):
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "weights").write_text("fox")
        return Files([tmp_path / "one", tmp_path / "two"])

    @pytest.fixture(autouse=True)
    def _nothing_happens(self):
        MEANWHILE.clear()

    def ref(self, files, path):
        return Written(files.find(File, str(path)).digest.hex())

    @pytest.mark.parametrize(
        "happen",
        [
            lambda path: path.write_text("owl"),
            lambda path: path.unlink(),
            lambda path: (path.with_name("new").write_text("fox"), path.with_name("new").replace(path)),
        ],
        ids=["changed", "gone", "replaced by the same"],
    )
    def test_one_whose_file_changes_while_it_is_read_is_not_kept(self, files, tmp_path, happen):
        pool = ModelPool(files)
        ref = self.ref(files, tmp_path / "one/weights")
        self.ref(files, tmp_path / "two/weights")
        files.find(File, "weights")
        MEANWHILE.append(happen)
        with pytest.raises(FileChanged):
            pool.acquire(ref, "cpu")
        MEANWHILE.clear()
        assert (pool.acquire(ref, "cpu").name, len(LOADED)) == ("fox", 2)

    def test_another_copy_does_not_vouch_for_the_file_that_was_read(self, files, tmp_path):
        """Meanwhile another thread plans with a file of the same content."""
        pool = ModelPool(files)
        ref = self.ref(files, tmp_path / "one/weights")
        MEANWHILE.append(lambda path: path.write_text("owl"))
        MEANWHILE.append(lambda _: self.ref(files, tmp_path / "two/weights"))
        with pytest.raises(FileChanged, match="one/weights"):
            pool.acquire(ref, "cpu")

    def test_a_copy_is_loaded_where_the_file_that_was_planned_is_gone(self, files, tmp_path):
        pool = ModelPool(files)
        self.ref(files, tmp_path / "two/weights")
        ref = self.ref(files, tmp_path / "one/weights")
        (tmp_path / "one/weights").unlink()
        assert pool.acquire(ref, "cpu").name == "fox"


@dataclass(frozen=True)
class Viewed(Written):
    """A module of which something is left to do when it is there."""

    def load(self, files, place):
        module = super().load(files, place)
        files.later(lambda: LEFT.append(module.name))
        return module


@dataclass(frozen=True)
class Above(ModelRef[Module]):
    """One that is made of such a module."""

    of: "Viewed | Above"

    @property
    def base(self):
        return self.of

    def patched(self, module, files, place):
        LOADED.append((f"above {module.name}", place))
        return Module(f"above {module.name}")

    def module_bytes(self, module):
        return 1


LEFT = []
"""What was left to do, and is done."""


class TestSettling:
    """What is left to do with a module when it is there is done before anything that was made with it counts."""

    @pytest.fixture
    def path(self, tmp_path):
        (tmp_path / "weights").write_text("fox")
        return tmp_path / "weights"

    @pytest.fixture
    def files(self, path):
        return Files([path.parent])

    @pytest.fixture
    def pool(self, files):
        return ModelPool(files)

    @pytest.fixture
    def ref(self, files, path):
        return Viewed(files.find(File, str(path)).digest.hex())

    @pytest.fixture(autouse=True)
    def _nothing_left(self):
        LEFT.clear()
        MEANWHILE.clear()

    def test_it_is_done_once_when_somebody_waits(self, pool, ref):
        context = Context(models=pool)
        context.model(ref)
        assert LEFT == []
        context.settle()
        context.settle()
        other = Context(models=pool)
        other.model(ref)
        other.settle()
        assert LEFT == ["fox"]

    def test_where_nobody_reads_it_is_done_at_once(self, files, ref):
        ref.load(files, "cpu")
        assert LEFT == ["fox"]

    def test_nothing_is_kept_on_the_way_before(self, pool, ref):
        kept = []

        class Kept:
            def keep(self, key, value, seconds):
                kept.append((key, list(LEFT)))

        context = Context(models=pool, interim=Kept())
        context.model(ref)
        context.keep(b"key", Socket(), 1.0)
        assert kept == [(b"key", ["fox"])]

    def test_a_file_that_changes_before_is_noticed_and_the_module_forgotten(self, pool, ref, path):
        context = Context(models=pool)
        assert context.model(ref).name.endswith("fox")
        path.write_text("owl")
        with pytest.raises(FileChanged, match="weights changed"):
            context.settle()
        context.release()
        assert pool.held() == 0
        path.write_text("fox")
        LOADED.clear()
        again = Context(models=pool)
        again.model(ref)
        again.settle()
        assert LOADED[0][0] == ref.digest

    @pytest.mark.parametrize("make", [Above, lambda ref: Above(Above(ref))], ids=["one", "two"])
    def test_nothing_is_made_of_it_before(self, pool, ref, path, make):
        context = Context(models=pool)
        assert context.model(make(ref)).name.endswith("fox")
        assert LEFT == ["fox"]
        path.write_text("owl")
        context.settle()

    def test_nothing_is_made_of_one_whose_file_changed(self, pool, ref, path):
        context = Context(models=pool)
        context.model(ref)
        path.write_text("owl")
        with pytest.raises(FileChanged, match="weights changed"):
            Context(models=pool).model(Above(ref))
        context.release()
        assert pool.held() == 0

    def test_everybody_who_uses_it_is_told(self, pool, ref, path):
        both = [Context(models=pool), Context(models=pool)]
        for context in both:
            context.model(ref)
        path.write_text("owl")
        for context in both:
            with pytest.raises(FileChanged):
                context.settle()
            context.release()
        path.write_text("fox")
        fresh, late = Context(models=pool), both[0]
        fresh.model(ref)
        fresh.settle()
        late.model(ref)
        late.settle()
        assert pool.held() == 1

    def test_whoever_holds_the_forgotten_one_is_told_though_it_was_loaded_again(self, pool, ref, path):
        one, other = Context(models=pool), Context(models=pool)
        one.model(ref)
        other.model(ref)
        path.write_text("owl")
        with pytest.raises(FileChanged):
            one.settle()
        one.release()
        path.write_text("fox")
        one.model(ref)
        one.settle()
        with pytest.raises(FileChanged, match="a model's files changed while it was loaded"):
            other.settle()

    def test_a_file_that_changes_afterwards_does_not_matter(self, pool, ref, path):
        context = Context(models=pool)
        context.model(ref)
        context.settle()
        path.write_text("owl")
        other = Context(models=pool)
        assert other.model(ref).name == "fox"
        other.settle()


@dataclass(frozen=True)
class Stored(Ref):
    """A model in a file."""

    folder: str = ""

    def paths(self, files):
        if not self.folder:
            raise FileChanged(self.name)
        return [Path(self.folder) / self.name]


class TestReadingAhead:
    @pytest.fixture
    def read(self, monkeypatch):
        """What the system was asked to read, once the thread that asks has done so."""
        asked = []

        def advise(number, *_):
            asked.append(Path(f"/proc/self/fd/{number}").readlink())

        monkeypatch.setattr(os, "posix_fadvise", advise)

        def names():
            for thread in threading.enumerate():
                if thread.name == "calotype-ahead":
                    thread.join()
            return [path.name for path in asked]

        return names

    @pytest.fixture
    def stored(self, tmp_path):
        def ref(name):
            (tmp_path / name).write_bytes(b"weights")
            return Stored(name, folder=str(tmp_path))

        return ref

    def test_files_of_models_to_come_are_read_once(self, pool, read, stored):
        pool.foresee([stored("a"), stored("b")])
        assert read() == ["a", "b"]
        pool.foresee([stored("b"), stored("c")])
        assert read() == ["a", "b", "c"]

    def test_those_of_models_that_are_there_are_not(self, pool, read, stored):
        pool.acquire(stored("a"), "gpu")
        pool.foresee([stored("a")])
        assert read() == []

    def test_what_is_gone_is_not_read_and_no_error_yet(self, pool, read, stored):
        gone = stored("b")
        (Path(gone.folder) / "b").unlink()
        pool.foresee([Stored("a"), gone, stored("c")])
        assert read() == ["c"]
