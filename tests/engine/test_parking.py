"""Tensors of modules move in place, each storage once, and whoever shares one sees it where it is."""

import copy
from dataclasses import dataclass

import pytest
import torch
from pretend import Pretend, addresses, all_here, lies_away
from torch import nn

from engine import device as engine_device
from engine.budget import Ledger
from engine.device import Device, relocate, tensors_of
from engine.models import ModelPool, ModelRef


@dataclass(frozen=True)
class Model:
    """A module with more beside it, as model references give it."""

    net: nn.Module
    table: tuple[torch.Tensor, ...] = ()
    words: dict = None
    tokenizer: object = None


def net():
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).requires_grad_(requires_grad=False)
    return made.eval()


def sharing(module):
    """A copy of a module with the same tensors."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]})


def test_tensors_are_found_in_modules_dataclasses_mappings_and_sequences():
    module, one, other = net(), torch.zeros(2), torch.zeros(3)
    model = Model(module, (one,), {"cat": [other]}, tokenizer=object())
    assert [id(tensor) for tensor in tensors_of(model)] == [
        *map(id, module.parameters()),
        *map(id, module.buffers()),
        id(one),
        id(other),
    ]


class TestRelocate:
    def test_the_tensors_are_the_same_objects_with_the_same_numbers_elsewhere(self):
        module = net()
        x = torch.ones(2, 3)
        expected, before = module(x), addresses(module)
        parameters = list(module.parameters())
        relocate(list(tensors_of(module)), "cpu")
        assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
        assert not set(addresses(module)) & set(before)
        assert torch.equal(module(x), expected)

    def test_views_of_one_storage_stay_views_of_one_storage(self):
        whole = torch.arange(12.0).reshape(3, 4)
        column, turned = whole[:, 1], whole.t()
        relocate([turned, whole, column], "cpu")
        assert (column.stride(), turned.stride(), column.storage_offset()) == ((4,), (1, 4), 1)
        whole[2, 1] = -1.0
        assert (column[2].item(), turned[1, 2].item()) == (-1.0, -1.0)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
    def test_every_number_format_survives(self, dtype):
        tensor = torch.tensor([[0, 1], [1, 0]]).to(dtype)
        expected = tensor.clone()
        relocate([tensor, torch.empty(0, dtype=dtype)], "cpu")
        assert (tensor.dtype, torch.equal(tensor, expected)) == (dtype, True)

    def test_where_one_finds_no_room_none_moves(self, monkeypatch):
        module = net()
        before, empty, left = addresses(module), torch.empty, [3]

        def short(*size, **options):
            left[0] -= options.get("dtype") is torch.uint8 and size != (0,)
            if left[0] < 0:
                raise torch.OutOfMemoryError("no room")
            return empty(*size, **options)

        monkeypatch.setattr(torch, "empty", short)
        with pytest.raises(torch.OutOfMemoryError, match="no room"):
            relocate(list(tensors_of(module)), "cpu")
        assert addresses(module) == before

    def test_it_waits_once_when_all_is_copied_and_nothing_lies_on_the_host_before(self, monkeypatch):
        module, waits = net(), []
        before = addresses(module)
        monkeypatch.setattr(engine_device, "_is_away", lambda _: True)
        monkeypatch.setattr(engine_device, "_wait", lambda place: waits.append((str(place), addresses(module))))
        relocate(list(tensors_of(module)), "cpu")
        assert waits == [("cpu", before)]
        assert not set(addresses(module)) & set(before)

    def test_where_the_device_fails_meanwhile_none_moves(self, monkeypatch):
        module = net()
        before = addresses(module)

        def lost(_):
            raise RuntimeError("the device is lost")

        monkeypatch.setattr(engine_device, "_is_away", lambda _: True)
        monkeypatch.setattr(engine_device, "_wait", lost)
        with pytest.raises(RuntimeError, match="lost"):
            relocate(list(tensors_of(module)), "cpu")
        assert addresses(module) == before


class TestPark:
    def test_on_the_host_there_is_nowhere_to_move(self):
        assert Device("cpu").park([net()]) is None

    def test_a_module_goes_and_comes_back(self):
        device, module = Pretend(), net()
        parked = device.park([Model(module)])
        assert all(map(lies_away, tensors_of(module)))
        assert parked.nbytes == sum(tensor.nbytes for tensor in tensors_of(module))
        parked.back()
        assert all_here(module)

    def test_what_is_spared_stays(self):
        device, module = Pretend(), net()
        patched = sharing(module)
        patched[0].weight = nn.Parameter(torch.ones(4, 3), requires_grad=False)
        parked = device.park([patched], spare=[module])
        assert (all_here(module), parked.nbytes) == (True, 4 * 3 * 4)
        assert [name for name, tensor in patched.named_parameters() if lies_away(tensor)] == ["0.weight"]

    def test_a_view_of_something_spared_stays_too(self):
        device, module = Pretend(), net()
        patched = sharing(module)
        patched[0].weight = nn.Parameter(module[0].weight.data[:, :], requires_grad=False)
        assert device.park([patched], spare=[module]).nbytes == 0

    def test_what_shares_a_storage_without_sharing_the_tensor_moves_along(self):
        device, module = Pretend(), net()
        other = sharing(module)
        other[2].weight = nn.Parameter(module[2].weight.data[:2], requires_grad=False)
        device.park([module, other]).back()
        assert other[2].weight.untyped_storage().data_ptr() == module[2].weight.untyped_storage().data_ptr()

    def test_what_was_away_before_is_not_counted_again(self):
        device, module = Pretend(), net()
        device.park([module])
        assert device.park([module]).nbytes == 0


@dataclass(frozen=True)
class Net(ModelRef[Model]):
    """A network, with one weight of its own for each seed on top of the first."""

    seed: int
    patches: tuple[int, ...] = ()

    @property
    def base(self):
        return Net(self.seed, self.patches[:-1]) if self.patches else None

    def load(self, files, place):
        torch.manual_seed(self.seed)
        made = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).requires_grad_(requires_grad=False)
        return Model(made.to(place))

    def patched(self, module, files, place):
        made = sharing(module.net)
        made[1].weight = nn.Parameter(module.net[1].weight + self.patches[-1], requires_grad=False)
        return Model(made)

    def module_bytes(self, module):
        return module.net[1].weight.nbytes if self.patches else sum(tensor.nbytes for tensor in tensors_of(module))


def through(pool, place, *refs):
    """What each network makes of the same input."""
    found = []
    for ref in refs:
        net = pool.acquire(ref, place).net
        found.append(net(torch.linspace(-1, 1, 64, device=place)))
        pool.release(ref)
    return found


ORDER = [Net(1), Net(1, (2,)), Net(2), Net(1, (2, 5)), Net(2, (3,)), Net(1), Net(1, (2, 5)), Net(2), Net(1, (2,))]


@pytest.mark.parametrize("budget", [0, 40_000, 60_000, 80_000])
@pytest.mark.parametrize("host", [0, 40_000, 1 << 20])
def test_networks_give_the_same_bits_however_often_they_went_and_came_back(budget, host):
    expected = through(ModelPool(), "cpu", *ORDER)
    device = Pretend()
    pool = ModelPool(ledger=Ledger(device.name, budget), device=device, host=Ledger("cpu", host))
    for _ in range(3):
        found = through(pool, device.name, *ORDER)
        assert all(map(torch.equal, found, expected))
        pool.here.ledger.make_room()
    assert host < 1 << 20 or {word for word, _ in device.moved} == {"away", "back"}


@pytest.mark.gpu
class TestCuda:
    @pytest.fixture
    def device(self):
        return Device("cuda")

    def test_memory_of_the_device_is_free_once_a_module_went(self, device):
        module = nn.Linear(4096, 4096).requires_grad_(requires_grad=False).to(device.name)
        x = torch.ones(1, 4096, device=device.name)
        expected, before = module(x), torch.cuda.memory_allocated(device.name)
        parked = device.park([module])
        assert before - torch.cuda.memory_allocated(device.name) >= 4096 * 4096 * 4
        assert {tensor.device.type for tensor in tensors_of(module)} == {"cpu"}
        assert module.weight.is_pinned()
        parked.back()
        assert torch.equal(module(x), expected)

    def test_a_table_that_lay_on_the_host_stays_there(self, device):
        model = Model(nn.Linear(8, 8).to(device.name), (torch.zeros(1000),))
        device.park([model]).back()
        assert (model.table[0].device.type, model.net.weight.device.type) == ("cpu", "cuda")

    def test_where_the_device_has_no_room_a_module_stays_on_the_host(self, device):
        module = nn.Sequential(nn.Linear(64, 64), nn.Linear(8192, 8192)).to(device.name)
        parked = device.park([module])
        device.trim()
        free, _ = torch.cuda.mem_get_info(device.name)
        hog = torch.empty(free - (128 << 20), dtype=torch.uint8, device=device.name)
        with pytest.raises(torch.OutOfMemoryError):
            parked.back()
        assert {tensor.device.type for tensor in tensors_of(module)} == {"cpu"}
        del hog
        parked.back()
        assert {tensor.device.type for tensor in tensors_of(module)} == {"cuda"}

    def test_networks_that_share_weights_give_the_same_bits_when_they_come_back(self, device):
        expected = through(ModelPool(), device.name, *ORDER)
        pool = ModelPool(ledger=Ledger(device.name, 40_000), device=device, host=Ledger("cpu", 1 << 20))
        for _ in range(3):
            assert all(map(torch.equal, through(pool, device.name, *ORDER), expected))
        before = torch.cuda.memory_allocated(device.name)
        pool.here.ledger.free_everything()
        assert (pool.held(), before - torch.cuda.memory_allocated(device.name) > 0) == (0, True)
