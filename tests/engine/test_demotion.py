"""Models on an accelerator: what has to go waits on the host, and comes back as the module that it was."""

from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from accelerators import LOADED, Accelerator, Ref
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import engine.models
from engine.budget import Ledger
from engine.eviction import Gdsf
from engine.models import ModelPool

UNET, VAE, CLIP = Ref("unet"), Ref("vae"), Ref("clip")
LORA = Ref("unet", patches=("lora",))
BOTH = Ref("unet", patches=("lora", "other"))


@pytest.fixture(autouse=True)
def _nothing_loaded():
    LOADED.clear()


def pools(device=25, host=100):
    accelerator = Accelerator()
    return ModelPool(ledger=Ledger("gpu", device), device=accelerator, host=Ledger("cpu", host))


@pytest.fixture
def pool():
    return pools()


def use(pool, *refs):
    """Ask for models and give them back, as nodes do; the modules."""
    found = []
    for ref in refs:
        found.append(pool.acquire(ref, "gpu"))
        pool.release(ref)
    return found


def both(pool):
    """Bytes on the device, bytes on the host."""
    return pool.here.held(), pool.there.held()


def test_what_has_to_go_waits_on_the_host_and_is_not_loaded_again(pool):
    (unet,) = use(pool, UNET)
    use(pool, VAE, CLIP)
    assert (both(pool), unet.places()) == ((20, 10), {"cpu"})
    assert use(pool, UNET) == [unet]
    assert (both(pool), unet.places()) == ((20, 10), {"gpu"})
    assert LOADED == ["unet", "vae", "clip"]


def test_what_the_host_cannot_hold_is_dropped():
    pool = pools(device=25, host=9)
    use(pool, UNET, VAE)
    pool.here.ledger.free_everything()
    assert both(pool) == (0, 0)
    use(pool, UNET)
    assert LOADED == ["unet", "vae", "unet"]


def test_without_a_host_of_its_own_a_device_drops_what_has_to_go():
    pool = ModelPool(ledger=Ledger("cpu", 25))
    use(pool, UNET)
    pool.here.ledger.free_everything()
    use(pool, UNET)
    assert (pool.there, LOADED) == (None, ["unet", "unet"])


@dataclass
class Values:
    """Another holder: one value under a ledger."""

    ledger: Ledger
    size: int = 10
    seconds: float = 1.0
    name: str = "values"

    def __post_init__(self):
        self._policy = Gdsf(lambda: self.ledger.capacity, self.ledger.ageing)
        self._policy.admit("value", self.size, self.seconds)
        self.ledger.join(self)

    def held(self):
        return self.size

    def cheapest(self):
        return self._policy.priority("value") if self.size else None

    def give_up(self):
        freed, self.size = self.size, 0
        self._policy.evict("value")
        return freed


@pytest.fixture
def clock(monkeypatch):
    """Loading a model takes as many seconds as it is told to."""
    time = SimpleNamespace(now=0.0, loading={})
    load = Ref.load

    def slow(ref, files, place):
        time.now += time.loading.get(ref.name, 1.0)
        return load(ref, files, place)

    monkeypatch.setattr(Ref, "load", slow)
    monkeypatch.setattr(engine.models, "time", SimpleNamespace(perf_counter=lambda: time.now))
    return time


def test_on_the_host_what_loads_fastest_goes_first(clock):
    pool = pools(device=10, host=20)
    clock.loading = {"unet": 9.0, "vae": 2.0, "clip": 5.0}
    use(pool, UNET, VAE, CLIP, Ref("other"))
    LOADED.clear()
    use(pool, UNET, CLIP)
    assert LOADED == []
    use(pool, VAE)
    assert LOADED == ["vae"]


@pytest.mark.parametrize(("seconds", "left"), [(1e6, (0, 10)), (1e-6, (10, 0))])
def test_on_the_host_models_and_values_compete(clock, seconds, left):
    pool = pools(device=10, host=15)
    values = Values(pool.there.ledger, seconds=seconds)
    use(pool, UNET, VAE)
    assert (pool.there.held(), values.size) == left


def test_on_the_device_a_model_is_worth_a_copy_where_the_host_can_take_it(clock):
    clock.loading = {"unet": 1000.0}
    pool = pools(device=25)
    values = Values(pool.here.ledger, seconds=1.0)
    use(pool, UNET, VAE)
    assert (values.size, both(pool)) == (10, (10, 10))


def test_on_a_device_that_is_the_host_a_model_is_worth_the_seconds_that_it_loads(clock):
    clock.loading = {"unet": 1000.0, "vae": 1000.0}
    pool = ModelPool(ledger=Ledger("cpu", 25))
    values = Values(pool.here.ledger, seconds=1.0)
    use(pool, UNET, VAE)
    assert (values.size, pool.held()) == (0, 20)


def test_a_model_that_is_held_stays_on_the_device(pool):
    held = pool.acquire(UNET, "gpu")
    use(pool, VAE, CLIP)
    pool.here.ledger.free_everything()
    assert (held.places(), both(pool)) == ({"gpu"}, (10, 20))


class TestSharing:
    def test_a_patched_model_goes_before_its_base_and_leaves_it_what_they_share(self, pool):
        unet, lora = use(pool, UNET, LORA)
        assert pool.here.give_up() == 4
        assert (unet.places(), [weight.where for weight in lora.weights]) == ({"gpu"}, ["gpu", "cpu"])
        assert pool.here.give_up() == 10
        assert (unet.places(), lora.places()) == ({"cpu"}, {"cpu"})
        assert both(pool) == (0, 14)

    def test_it_comes_back_with_its_base_and_shares_with_it_what_it_shared(self, pool):
        unet, lora = use(pool, UNET, LORA)
        pool.here.ledger.free_everything()
        assert use(pool, LORA) == [lora]
        assert (unet.places(), lora.places(), both(pool)) == ({"gpu"}, {"gpu"}, (14, 0))
        assert lora.weights[0] is unet.weights[0]
        assert use(pool, UNET) == [unet]
        assert LOADED == ["unet", "lora"]

    def test_a_base_comes_back_alone(self, pool):
        unet, lora = use(pool, UNET, LORA)
        pool.here.ledger.free_everything()
        use(pool, UNET)
        assert (unet.places(), [weight.where for weight in lora.weights]) == ({"gpu"}, ["gpu", "cpu"])
        assert both(pool) == (10, 4)

    def test_three_on_top_of_each_other_come_back_as_they_were(self, pool):
        made = use(pool, UNET, LORA, BOTH)
        pool.here.ledger.free_everything()
        assert both(pool) == (0, 18)
        assert use(pool, BOTH) == made[2:]
        assert {place for module in made for place in module.places()} == {"gpu"}
        assert LOADED == ["unet", "lora", "other"]

    def test_the_host_gives_up_what_is_made_of_a_model_before_the_model(self, pool):
        use(pool, UNET, LORA, BOTH)
        pool.here.ledger.free_everything()
        assert [pool.there.give_up() for _ in range(4)] == [4, 4, 10, 0]
        use(pool, BOTH)
        assert LOADED == ["unet", "lora", "other"] * 2

    def test_a_base_that_the_host_cannot_take_is_dropped_with_all_that_is_made_of_it(self):
        pool = pools(host=9)
        use(pool, UNET, LORA)
        pool.here.ledger.free_everything()
        assert both(pool) == (0, 0)
        use(pool, LORA)
        assert LOADED == ["unet", "lora"] * 2

    def test_while_one_that_is_made_of_it_is_held_a_base_stays(self, pool):
        lora = pool.acquire(LORA, "gpu")
        pool.here.ledger.free_everything()
        assert (lora.places(), both(pool)) == ({"gpu"}, (14, 0))
        pool.release(LORA)
        pool.here.ledger.free_everything()
        assert both(pool) == (0, 14)


class TestTrouble:
    def test_a_model_that_cannot_be_moved_as_a_whole_is_dropped(self, pool):
        pool._device.stuck = True
        use(pool, UNET, LORA)
        pool.here.ledger.free_everything()
        assert both(pool) == (0, 0)
        pool._device.stuck = False
        assert use(pool, LORA)[0].places() == {"gpu"}
        assert LOADED == ["unet", "lora"] * 2

    def test_where_moving_fails_it_is_dropped(self, pool):
        pool._device.refuses = True
        use(pool, UNET, LORA)
        pool.here.ledger.free_everything()
        assert both(pool) == (0, 0)

    def test_one_that_finds_no_room_to_come_back_waits_on_the_host_for_the_next_try(self, pool):
        unet, lora = use(pool, UNET, LORA)
        pool.here.ledger.free_everything()
        pool._device.refuses = True
        with pytest.raises(MemoryError, match="no room"):
            pool.acquire(LORA, "gpu")
        assert (lora.places(), both(pool)) == ({"cpu"}, (0, 14))
        pool._device.refuses = False
        assert use(pool, LORA) == [lora]
        pool.here.ledger.free_everything()
        assert both(pool) == (0, 14)

    def test_what_is_about_to_come_back_is_not_dropped_for_what_makes_room_for_it(self):
        pool = pools(device=10, host=10)
        use(pool, UNET, VAE)
        assert both(pool) == (10, 10)
        assert use(pool, UNET)[0].places() == {"gpu"}
        assert LOADED == ["unet", "vae"]
        use(pool, VAE)
        assert LOADED == ["unet", "vae", "vae"]


class TestRoom:
    @pytest.fixture
    def used(self, monkeypatch):
        """Bytes that are held while each model is loaded."""
        found, load = [], Ref.load

        def watched(ref, files, place):
            found.append(self.pool.here.ledger.used())
            return load(ref, files, place)

        monkeypatch.setattr(Ref, "load", watched)
        return found

    def test_room_is_made_before_a_model_is_loaded(self, used):
        self.pool = pools(device=25)
        use(self.pool, UNET, VAE, CLIP)
        assert used == [0, 10, 10]

    def test_where_its_size_is_not_known_room_is_made_as_soon_as_it_is(self, used, monkeypatch):
        monkeypatch.setattr(Ref, "expected_bytes", engine.models.ModelRef.expected_bytes)
        self.pool = pools(device=25, host=0)
        use(self.pool, UNET, VAE, CLIP)
        assert (used, self.pool.held()) == ([0, 10, 20], 20)
        self.pool.here.ledger.free_everything()
        use(self.pool, VAE, CLIP, UNET)
        assert used[3:] == [0, 10, 10], "they were loaded before"

    def test_what_fits_into_the_budget_is_no_overdraft(self, pool):
        pool.acquire(UNET, "gpu")
        assert pool.overdraft() is None

    def test_what_is_in_use_beyond_the_budget_is_said_with_the_ledger(self, pool):
        for ref in (UNET, VAE, CLIP):
            pool.acquire(ref, "gpu")
        assert "takes 30 B of gpu, more than its budget: models 30 B, budget 25 B" in pool.overdraft()


REFS = [UNET, VAE, Ref("clip", 30), LORA, BOTH, Ref("unet", patches=("third",))]
moves = st.lists(
    st.tuples(st.sampled_from(["acquire", "acquire", "release", "free", "refuse", "stuck"]), st.integers(0, 5)),
    max_size=40,
)


scripts = st.tuples(moves, st.sampled_from([0, 15, 25, 1000]), st.sampled_from([0, 5, 12, 20, 1000]))


@given(scripts)
def test_whatever_happens_held_models_lie_on_the_device_share_what_they_share_and_every_byte_is_counted(script):
    follow(*script)


def shares_nothing_with_its_base():
    """A model that has to go takes along what it shares."""
    park = Accelerator.park
    return patch.object(Accelerator, "park", lambda device, modules, **_: park(device, modules))


def forgets_that_others_are_made_of_it():
    """A base goes from the device though one that is made of it is there."""
    return patch.object(ModelPool, "_hold", lambda pool, key: pool._rise(key, pool._models[key]))


MISTAKES = [shares_nothing_with_its_base, forgets_that_others_are_made_of_it]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_broken_pool_is_caught(mistake):
    @settings(max_examples=1000, phases=[Phase.generate], database=None, derandomize=True, report_multiple_bugs=False)
    @given(scripts)
    def property_(script):
        follow(*script)

    with mistake(), pytest.raises((AssertionError, KeyError)):
        property_()


def follow(moves, device, host):
    """Move by move, with a look at everything after each."""
    LOADED.clear()
    pool, held = pools(device, host), []
    for move, number in moves:
        ref = REFS[number]
        if move == "acquire":
            try:
                held.append((ref, pool.acquire(ref, "gpu")))
            except MemoryError:
                assert pool._device.refuses
        elif move == "release" and held:
            pool.release(held.pop(number % len(held))[0])
        elif move == "free":
            pool.here.ledger.free_everything()
        elif move == "refuse":
            pool._device.refuses = bool(number % 2)
        elif move == "stuck":
            pool._device.stuck = bool(number % 2)
        inspect(pool, held)
    for ref, _ in held:
        pool.release(ref)
    pool.here.ledger.free_everything()
    while pool.there.give_up():
        pass
    assert (both(pool), pool._models, +pool._holds) == ((0, 0), {}, Counter())


def inspect(pool, held):
    """What must hold at any time."""
    for ref, module in held:
        assert module.places() == {"gpu"}
        assert pool._models[ref.identity()].module is module
    for ref in REFS:
        model = pool._models.get(ref.identity())
        if model is not None and ref.base is not None:
            below = pool._models[ref.base.identity()]
            assert model.module.weights[0] is below.module.weights[0]
    weights = {id(weight): weight for model in pool._models.values() for weight in model.module.weights}
    lying = Counter()
    for weight in weights.values():
        lying[weight.where] += weight.size
    assert (lying["gpu"], lying["cpu"]) == both(pool)
    assert pool.there.held() <= pool.there.ledger.capacity
    if not held:
        pool.here.ledger.make_room()
        assert pool.here.held() <= pool.here.ledger.capacity
