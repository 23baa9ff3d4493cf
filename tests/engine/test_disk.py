"""The disk tier: values survive, damage is a miss, the budget holds, and trouble degrades instead of failing."""

import errno
import json
import os
import random
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import disk as tier
from engine.catalogue import Catalogue
from engine.disk import Disk, decode, encode_value
from engine.socket import Array, Bool, Float, Int, Packed, Socket, Text


@dataclass(frozen=True)
class Grid(Socket):
    """Numbers and a remark, as an image has."""

    data: bytes = b""
    shape: tuple[int, ...] = (0,)
    remark: dict = field(default_factory=dict)

    def pack(self):
        return Packed({"remark": self.remark}, {"data": Array("U8", self.shape, self.data)})

    @classmethod
    def unpack(cls, packed):
        array = packed.arrays["data"]
        return cls(array.data, array.shape, dict(packed.meta["remark"]))

    def check(self):
        if len(self.data) != sum(self.shape):
            raise ValueError("the shape does not fit")


@dataclass(frozen=True)
class Stubborn(Socket):
    """Cannot be taken apart."""

    reason: Exception

    def pack(self):
        raise self.reason


SOCKETS = {cls.__name__: cls for cls in (Bool, Float, Int, Text, Grid, Stubborn)}
KEY, OTHER, THIRD = (bytes([number]) * 32 for number in (1, 2, 3))


class Shelf:
    """A cache folder opened once, as one process does."""

    def __init__(self, folder, budget=1 << 20, sockets=SOCKETS):
        self.catalogue = Catalogue(folder)
        self.disk = Disk(self.catalogue, sockets, budget)

    def put(self, identity, value, seconds=1.0):
        self.disk.put(identity, value, seconds)
        self.disk.flush()

    def close(self):
        self.disk.close()
        self.catalogue.close()


@pytest.fixture
def opened(tmp_path):
    """Open the same folder as often as wanted."""
    shelves = []

    def open_(**options):
        shelves.append(Shelf(tmp_path, **options))
        return shelves[-1]

    yield open_
    for shelf in shelves:
        shelf.close()


def grid(number, size=1000):
    return Grid(bytes([number]) * size, (size,))


def file_of(disk, identity):
    return disk.folder / identity.hex()[:2] / f"{identity.hex()}.safetensors"


def files(disk):
    return sorted(path.name for path in disk.folder.rglob("*") if path.is_file())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
values = (
    st.builds(
        lambda data, remark: Grid(data, (len(data),), remark), st.binary(), st.dictionaries(st.text(), json_values)
    )
    | st.builds(Text, st.text())
    | st.builds(Int, st.integers())
    | st.builds(Float, st.floats(allow_nan=False, allow_infinity=False))
    | st.builds(Bool, st.booleans())
)


class TestRoundTrip:
    @given(values)
    def test_a_value_is_read_as_it_was_written(self, value):
        packed, name = decode(encode_value(value))
        assert name == type(value).__name__
        assert SOCKETS[name].unpack(packed) == value

    @given(values)
    def test_a_value_that_was_read_is_written_the_same(self, value):
        data = encode_value(value)
        packed, name = decode(data)
        assert encode_value(SOCKETS[name].unpack(packed)) == data

    def test_a_value_outlives_the_process(self, opened):
        first = opened()
        first.put(KEY, grid(7))
        first.close()
        assert opened().disk.get(KEY) == grid(7)

    def test_a_value_that_is_not_written_yet_is_there_already(self, opened, monkeypatch):
        gate = threading.Event()
        place = tier._place
        monkeypatch.setattr(tier, "_place", lambda *args: (gate.wait(), place(*args)))
        disk = opened().disk
        disk.put(KEY, grid(7), 1.0)
        assert KEY in disk
        assert disk.get(KEY) == grid(7)
        assert files(disk) == []
        gate.set()
        disk.flush()
        assert files(disk) == [f"{KEY.hex()}.safetensors"]

    def test_a_value_with_much_to_say_is_kept_too(self, opened):
        shelf = opened(budget=1 << 24)
        shelf.put(KEY, Text("x" * (3 << 20)))
        assert len(opened().disk.get(KEY).value) == 3 << 20

    def test_the_seconds_are_remembered(self, opened):
        opened().put(KEY, grid(7), seconds=12.5)
        assert opened().disk.worth(KEY)[0] == 12.5
        assert opened().disk.worth(OTHER)[0] == 0.0

    def test_a_file_is_what_any_reader_of_safetensors_understands(self, opened):
        shelf = opened()
        shelf.put(KEY, Grid(b"abcdef", (6,), {"title": "fox"}))
        ((name, array),) = safetensors.deserialize(file_of(shelf.disk, KEY).read_bytes())
        assert (name, array["dtype"], array["shape"], bytes(array["data"])) == ("data", "U8", [6], b"abcdef")

    def test_what_is_there_is_not_written_again(self, opened):
        shelf = opened()
        shelf.put(KEY, grid(7))
        before = file_of(shelf.disk, KEY).stat().st_ino
        shelf.put(KEY, grid(7))
        assert file_of(shelf.disk, KEY).stat().st_ino == before

    def test_an_unknown_identity_is_a_miss(self, opened):
        disk = opened().disk
        assert disk.get(KEY) is None
        assert KEY not in disk


class TestDamage:
    @pytest.fixture
    def shelf(self, opened):
        made = opened()
        made.put(KEY, Grid(bytes(range(200)), (200,), {"title": "fox"}))
        return made

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
    @given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
    def test_any_flipped_bit_is_noticed(self, position, bit):
        value = Grid(bytes(range(200)), (200,), {"title": "fox", "sizes": [1, 2.5]})
        data = bytearray(encode_value(value))
        data[position % len(data)] ^= 1 << bit
        try:
            packed, name = decode(bytes(data))
        except tier._GARBLED:
            return
        assert Grid.unpack(packed) == value
        assert name == "Grid"

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\0" * 7,
            b"\0" * 8,
            b"\xff" * 100,
            struct.pack("<Q", 2) + b"{}",
            struct.pack("<Q", 4) + b"null",
            struct.pack("<Q", 1) + b"7",
            struct.pack("<Q", 3) + b'"a"',
            struct.pack("<Q", 2) + b"[]",
            struct.pack("<Q", 19) + b'{"__metadata__":[]}',
            struct.pack("<Q", 21) + b'{"__metadata__":null}',
            struct.pack("<Q", 100_000) + b"[" * 100_000,
            struct.pack("<Q", 1 << 63) + b"{}",
            b"PK\x03\x04 a zip file, perhaps a checkpoint",
        ],
    )
    def test_whatever_stands_in_its_place_is_a_miss_and_goes(self, shelf, data):
        file_of(shelf.disk, KEY).write_bytes(data)
        assert shelf.disk.get(KEY) is None
        assert KEY not in shelf.disk
        assert files(shelf.disk) == []
        assert shelf.disk.held() == 0

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
    def test_a_truncated_file_is_a_miss_and_goes(self, shelf, share):
        place = file_of(shelf.disk, KEY)
        data = place.read_bytes()
        place.write_bytes(data[: int(len(data) * share)])
        assert shelf.disk.get(KEY) is None
        assert not place.exists()

    def test_a_file_with_something_behind_it_is_a_miss(self, shelf):
        with file_of(shelf.disk, KEY).open("ab") as stream:
            stream.write(b"more")
        assert shelf.disk.get(KEY) is None

    def test_a_value_is_checked_as_an_output_is(self, shelf):
        file_of(shelf.disk, KEY).write_bytes(encode_value(Grid(b"abc", (7,))))
        assert shelf.disk.get(KEY) is None

    def test_a_type_that_nobody_knows_is_a_miss(self, shelf, opened):
        assert opened(sockets={}).disk.get(KEY) is None

    def test_a_value_of_another_type_under_the_same_name_is_a_miss(self, shelf, opened):
        assert opened(sockets={"Grid": Text}).disk.get(KEY) is None

    def test_a_damaged_value_can_be_put_again(self, shelf):
        file_of(shelf.disk, KEY).write_bytes(b"damaged")
        assert shelf.disk.get(KEY) is None
        shelf.put(KEY, grid(8))
        assert shelf.disk.get(KEY) == grid(8)

    def test_a_checksum_covers_names_types_and_shapes(self):
        data = encode_value(Grid(b"abcdef", (6,), {"a": 1}))
        for before, after in ((b'"a\\": 1', b'"a\\": 2'), (b'"U8"', b'"I8"'), (b"[6]", b"[7]"), (b'"Grid"', b'"Grit"')):
            assert before in data
            with pytest.raises(ValueError, match="checksum differs"):
                decode(data.replace(before, after))

    def test_a_file_that_is_gone_is_a_miss(self, shelf):
        file_of(shelf.disk, KEY).unlink()
        assert shelf.disk.get(KEY) is None
        assert KEY not in shelf.disk


SIZE = len(encode_value(grid(0), KEY))


class TestBudget:
    def kept(self, disk):
        return [key[0] for key in (KEY, OTHER, THIRD, bytes([4]) * 32, bytes([5]) * 32) if key in disk]

    def test_what_is_held_is_the_size_of_the_files(self, opened):
        shelf = opened()
        for key in (KEY, OTHER):
            shelf.put(key, grid(1))
        assert shelf.disk.held() == 2 * SIZE == sum(path.stat().st_size for path in shelf.disk.folder.rglob("*.safe*"))

    def test_the_value_that_is_cheapest_to_make_goes_first(self, opened):
        shelf = opened(budget=2 * SIZE)
        for key, seconds in ((KEY, 5.0), (OTHER, 1.0), (THIRD, 3.0)):
            shelf.put(key, grid(1), seconds)
        assert self.kept(shelf.disk) == [1, 3]
        assert shelf.disk.held() == 2 * SIZE

    def test_a_small_value_that_took_as_long_stays(self, opened):
        shelf = opened(budget=3000)
        shelf.put(KEY, grid(1, 2000), 5.0)
        shelf.put(OTHER, grid(1, 100), 5.0)
        shelf.put(THIRD, grid(1, 900), 5.0)
        assert self.kept(shelf.disk) == [2, 3]

    def test_a_value_that_was_read_is_worth_more(self, opened):
        shelf = opened(budget=2 * SIZE)
        shelf.put(KEY, grid(1), 1.0)
        shelf.put(OTHER, grid(1), 1.5)
        shelf.disk.get(KEY)
        shelf.put(THIRD, grid(1), 1.7)
        assert self.kept(shelf.disk) == [1, 3]

    def test_what_is_never_read_again_ages_out(self, opened):
        shelf = opened(budget=2 * SIZE)
        shelf.put(KEY, grid(1), 10.0)
        for number in range(20):
            shelf.put(bytes([100 + number]) * 32, grid(1), 1.0)
        assert KEY not in shelf.disk

    def test_a_value_that_is_read_again_and_again_does_not_age(self, opened):
        shelf = opened(budget=2 * SIZE)
        shelf.put(KEY, grid(1), 1.0)
        for number in range(20):
            shelf.put(bytes([100 + number]) * 32, grid(1), 1.0)
            assert shelf.disk.get(KEY) is not None

    def test_a_value_larger_than_the_budget_is_not_kept_and_displaces_nothing(self, opened):
        shelf = opened(budget=2 * SIZE)
        shelf.put(KEY, grid(1))
        shelf.put(OTHER, grid(1, 10 * SIZE))
        assert self.kept(shelf.disk) == [1]
        assert shelf.disk.trouble is None

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([10, 500, 3000]), st.booleans()), max_size=15))
    def test_the_budget_holds_whatever_comes(self, tmp_path_factory, script):
        shelf = Shelf(tmp_path_factory.mktemp("shelf"), budget=6000)
        try:
            for number, size, read in script:
                shelf.put(bytes([number, size % 256]) * 16, grid(number, size), seconds=number)
                if read:
                    shelf.disk.get(bytes([number, size % 256]) * 16)
                held = sum(path.stat().st_size for path in shelf.disk.folder.rglob("*") if path.is_file())
                assert shelf.disk.held() == held <= 6000
        finally:
            shelf.close()

    def test_discarding_a_value_gives_its_bytes_back(self, opened):
        shelf = opened()
        shelf.put(KEY, grid(1))
        shelf.disk.discard(KEY)
        assert (KEY in shelf.disk, shelf.disk.held(), files(shelf.disk)) == (False, 0, [])

    def test_clearing_leaves_nothing(self, opened):
        shelf = opened()
        for key in (KEY, OTHER):
            shelf.put(key, grid(1))
        shelf.disk.clear()
        assert (KEY in shelf.disk, shelf.disk.held(), files(shelf.disk)) == (False, 0, [])


class TestSharing:
    def test_two_processes_find_what_the_other_put(self, opened):
        one, other = opened(), opened()
        one.put(KEY, grid(1))
        other.put(OTHER, grid(2))
        assert other.disk.get(KEY) == grid(1)
        assert one.disk.get(OTHER) == grid(2)
        assert one.disk.held() == other.disk.held() == 2 * SIZE

    def test_two_processes_share_one_budget(self, opened):
        one, other = opened(budget=2 * SIZE), opened(budget=2 * SIZE)
        one.put(KEY, grid(1), 1.0)
        other.put(OTHER, grid(2), 2.0)
        one.put(THIRD, grid(3), 3.0)
        assert KEY not in other.disk
        assert other.disk.held() == 2 * SIZE

    def test_two_processes_may_put_the_same_value(self, opened):
        one, other = opened(), opened()
        one.disk.put(KEY, grid(1), 1.0)
        other.disk.put(KEY, grid(1), 1.0)
        for shelf in (one, other):
            shelf.disk.flush()
        assert files(one.disk) == [f"{KEY.hex()}.safetensors"]
        assert one.disk.held() == SIZE

    def test_a_value_that_another_process_evicted_is_a_miss(self, opened):
        one, other = opened(budget=SIZE), opened(budget=SIZE)
        one.put(KEY, grid(1), 1.0)
        other.put(OTHER, grid(2), 2.0)
        assert one.disk.get(KEY) is None

    def test_both_write_at_the_same_time(self, opened):
        shelves = [opened(), opened()]
        keys = [bytes([number]) * 32 for number in range(60)]

        def write(shelf, seed):
            for key in random.Random(seed).sample(keys, len(keys)):
                shelf.disk.put(key, grid(key[0], 100), 1.0)
                shelf.disk.get(random.Random(seed).choice(keys))
            shelf.disk.flush()

        threads = [threading.Thread(target=write, args=(shelf, seed)) for seed, shelf in enumerate(shelves)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for shelf in shelves:
            assert shelf.disk.trouble is None
            assert all(shelf.disk.get(key) == grid(key[0], 100) for key in keys)
        assert shelves[0].disk.held() == len(keys) * len(encode_value(grid(0, 100), KEY))


class TestInterrupted:
    def test_half_written_files_are_no_values(self, opened):
        shelf = opened()
        place = file_of(shelf.disk, KEY)
        place.parent.mkdir(parents=True)
        data = encode_value(grid(1))
        (place.parent / "tmpabc.part").write_bytes(data[: len(data) // 2])
        assert KEY not in shelf.disk
        shelf.put(KEY, grid(1))
        assert opened().disk.get(KEY) == grid(1)

    def test_what_dies_before_the_file_is_in_place_still_counts_and_can_be_made_again(self, opened, monkeypatch):
        shelf = opened()
        place = tier._place

        def die(data, path):
            raise MemoryError

        monkeypatch.setattr(tier, "_place", die)
        shelf.put(KEY, grid(1))
        again = opened()
        assert again.disk.get(KEY) is None
        monkeypatch.setattr(tier, "_place", place)
        again.put(KEY, grid(1))
        assert again.disk.get(KEY) == grid(1)
        assert again.disk.held() == SIZE


def full(*_args, **_more):
    raise OSError(errno.ENOSPC, "No space left on device")


class TestTrouble:
    @pytest.mark.parametrize(("module", "name"), [(tier.tempfile, "mkstemp"), (tier.os, "fdopen"), (Path, "replace")])
    def test_a_full_disk_is_told_and_the_value_is_a_miss(self, opened, monkeypatch, module, name):
        shelf = opened()
        shelf.put(KEY, grid(1))
        real = getattr(module, name)
        monkeypatch.setattr(module, name, full)
        shelf.put(OTHER, grid(2))
        monkeypatch.setattr(module, name, real)
        assert "No space left on device" in shelf.disk.trouble
        assert OTHER not in shelf.disk
        assert shelf.disk.get(OTHER) is None
        assert shelf.disk.get(KEY) == grid(1)
        assert shelf.disk.held() == SIZE
        assert files(shelf.disk) == [f"{KEY.hex()}.safetensors"]

    def test_after_trouble_nothing_more_is_written(self, opened, monkeypatch):
        shelf = opened()
        monkeypatch.setattr(tier.tempfile, "mkstemp", full)
        shelf.put(KEY, grid(1))
        monkeypatch.undo()
        shelf.put(OTHER, grid(2))
        assert OTHER not in shelf.disk

    def test_a_damaged_file_that_cannot_be_removed_is_a_miss_and_told(self, opened, monkeypatch):
        shelf = opened()
        shelf.put(KEY, grid(1))
        file_of(shelf.disk, KEY).write_bytes(b"damaged")

        def refuse(*_args, **_more):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(Path, "unlink", refuse)
        assert shelf.disk.get(KEY) is None
        assert "Read-only file system" in shelf.disk.trouble

    def test_a_folder_in_place_of_a_file_is_a_miss(self, opened):
        shelf = opened()
        file_of(shelf.disk, KEY).mkdir(parents=True)
        assert shelf.disk.get(KEY) is None
        assert shelf.disk.trouble

    @pytest.mark.parametrize(
        "reason", [TypeError("no"), KeyError("no"), ValueError("no"), RuntimeError("no"), MemoryError("no")]
    )
    def test_a_value_that_cannot_be_packed_is_told_and_stops_nothing(self, opened, reason):
        shelf = opened()
        shelf.put(KEY, Stubborn(reason))
        assert shelf.disk.unwritten == {"Stubborn": str(reason)}
        assert KEY not in shelf.disk
        shelf.put(OTHER, grid(1))
        assert OTHER in shelf.disk
        shelf.disk.close()

    def test_a_value_with_a_nan_among_its_fields_is_told(self, opened):
        shelf = opened()
        shelf.put(KEY, Grid(b"", (0,), {"sigma": float("nan")}))
        assert shelf.disk.unwritten == {"Grid": "nan cannot be part of a key"}

    def test_reading_from_a_damaged_index_is_no_error(self, opened, tmp_path):
        shelf = opened()
        shelf.put(KEY, grid(1))
        shelf.catalogue._connection.execute("DROP TABLE stored")
        assert shelf.disk.get(KEY) == grid(1)
        assert shelf.disk.worth(KEY)[0] == 0.0
        assert shelf.disk.held() == 0
        assert "no such table" in shelf.disk.trouble


def test_closing_writes_what_is_pending(opened):
    shelf = opened()
    for number in range(20):
        shelf.disk.put(bytes([number]) * 32, grid(number), 1.0)
    shelf.close()
    assert all(opened().disk.get(bytes([number]) * 32) == grid(number) for number in range(20))


def test_a_closed_disk_leaves_no_thread_behind(opened):
    shelf = opened()
    shelf.put(KEY, grid(1))
    assert "calotype-disk" in [thread.name for thread in threading.enumerate()]
    shelf.close()
    assert "calotype-disk" not in [thread.name for thread in threading.enumerate()]


def test_the_layout_of_a_file_does_not_change_between_versions():
    """Values on people's disks were written with it."""
    data = encode_value(Grid(b"ab", (2,), {"a": 1}), KEY)
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert header == {
        "__metadata__": {
            "calotype": "1",
            "identity": KEY.hex(),
            "type": "Grid",
            "fields": '{"remark": {"a": 1}}',
            "sha256": "b3ffbd1aa370272e2962b63790bf15224d21e60df3618fbb5462fb6d9f3d2dec",
        },
        "data": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
    }
    assert data[8 + length :] == b"ab"


def test_nothing_but_the_folder_is_touched(opened, tmp_path):
    shelf = opened()
    shelf.put(KEY, grid(1))
    assert {place.stem for place in tmp_path.iterdir()} == {"calotype", "values"}


def test_what_killed_processes_left_half_written_is_removed_after_an_hour(tmp_path):
    folder = tmp_path / "values" / "ab"
    folder.mkdir(parents=True)
    for name, age in (("old", 7200), ("new", 10)):
        (folder / f"{name}.part").write_bytes(b"half")
        os.utime(folder / f"{name}.part", (time.time() - age,) * 2)
    Disk(Catalogue(tmp_path), {}, 1000).close()
    assert [path.name for path in folder.iterdir()] == ["new.part"]
