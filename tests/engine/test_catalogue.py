"""The catalogue of a cache folder: what opens, what is refused, and what trouble does."""

import multiprocessing
import sqlite3
import threading

import pytest

from engine.catalogue import LAYOUT, Catalogue
from engine.errors import CacheError

PUT = "INSERT OR REPLACE INTO facts VALUES (?,?)"
GET = "SELECT value FROM facts WHERE name=?"


@pytest.fixture
def opened(tmp_path):
    made = []

    def open_(folder=tmp_path / "cache"):
        made.append(Catalogue(folder))
        return made[-1]

    yield open_
    for catalogue in made:
        catalogue.close()


class TestOpening:
    def test_a_folder_that_is_not_there_is_made(self, opened, tmp_path):
        opened(tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b" / "calotype.sqlite").is_file()

    def test_what_was_written_is_there_after_opening_again(self, opened):
        opened().write(PUT, [("a", 1.5)])
        assert opened().one(GET, "a") == (1.5,)

    @pytest.mark.parametrize(
        "data", [b"not a database, but long enough to be mistaken for one" * 100, b"SQLite format 3\0" + b"\xff" * 4096]
    )
    def test_a_file_that_is_no_database_is_refused_and_left_alone(self, tmp_path, data):
        (tmp_path / "calotype.sqlite").write_bytes(data)
        with pytest.raises(CacheError, match="remove it or name another"):
            Catalogue(tmp_path)
        assert (tmp_path / "calotype.sqlite").read_bytes() == data

    def test_an_empty_file_is_an_empty_catalogue(self, opened, tmp_path):
        (tmp_path / "calotype.sqlite").touch()
        assert opened(tmp_path).one(GET, "a") is None

    def test_a_folder_of_another_layout_is_refused_and_says_which(self, tmp_path):
        with sqlite3.connect(tmp_path / "calotype.sqlite") as connection:
            connection.execute(f"PRAGMA user_version={LAYOUT + 1}")
        connection.close()
        with pytest.raises(CacheError, match=f"has layout {LAYOUT + 1}, this version writes {LAYOUT}"):
            Catalogue(tmp_path)

    def test_a_file_in_place_of_the_folder_is_refused(self, tmp_path):
        (tmp_path / "cache").touch()
        with pytest.raises(CacheError, match="File exists"):
            Catalogue(tmp_path / "cache")

    def test_a_folder_in_place_of_the_file_is_refused(self, tmp_path):
        (tmp_path / "calotype.sqlite").mkdir()
        with pytest.raises(CacheError, match="unable to open database file"):
            Catalogue(tmp_path)

    def test_many_processes_may_open_a_new_folder_at_once(self, tmp_path):
        context = multiprocessing.get_context("spawn")
        barrier, answers = context.Barrier(4), context.Queue()
        processes = [
            context.Process(target=_open_and_write, args=(tmp_path, barrier, answers, number), daemon=True)
            for number in range(4)
        ]
        for process in processes:
            process.start()
        assert [answers.get(timeout=60) for _ in processes] == [None] * 4
        for process in processes:
            process.join()


def _open_and_write(folder, barrier, answers, number):
    trouble = None
    for attempt in range(10):
        barrier.wait()
        try:
            catalogue = Catalogue(folder / str(attempt))
        except CacheError as error:
            trouble = str(error)
        else:
            catalogue.write(PUT, [(str(number), 1.0)])
            trouble = trouble or catalogue.trouble
            catalogue.close()
    answers.put(trouble)


class TestWriting:
    def test_many_rows_are_written_all_or_none(self, opened):
        catalogue = opened()
        catalogue.write("INSERT INTO facts VALUES (?,?)", [("a", 1.0)])
        catalogue.write("INSERT INTO facts VALUES (?,?)", [("b", 2.0), ("a", 3.0)])
        assert catalogue.all("SELECT name, value FROM facts") == [("a", 1.0)]
        assert "UNIQUE constraint" in catalogue.trouble

    def test_threads_share_one_connection(self, opened):
        catalogue = opened()

        def write(number):
            for step in range(50):
                catalogue.write(PUT, [(f"{number}/{step}", step)])
                assert catalogue.one(GET, f"{number}/{step}") == (step,)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert catalogue.one("SELECT COUNT(*) FROM facts") == (200,)

    def test_two_catalogues_of_one_folder_see_each_other(self, opened):
        one, other = opened(), opened()
        for number in range(20):
            (one if number % 2 else other).write(PUT, [(str(number), number)])
        assert one.all("SELECT COUNT(*) FROM facts") == other.all("SELECT COUNT(*) FROM facts") == [(20,)]

    def test_no_trouble_in_ordinary_times(self, opened):
        catalogue = opened()
        catalogue.write(PUT, [("a", 1.0)])
        assert catalogue.trouble is None


class TestTrouble:
    @pytest.fixture
    def catalogue(self, opened):
        made = opened()
        made.write(PUT, [("a", 1.0)])
        return made

    def test_a_folder_that_cannot_be_written_is_still_read(self, catalogue):
        catalogue._connection.execute("PRAGMA query_only=1")
        catalogue.write(PUT, [("b", 2.0)])
        assert "readonly" in catalogue.trouble
        assert catalogue.one(GET, "a") == (1.0,)

    def test_a_full_disk_leaves_nothing_half_written(self, catalogue):
        (pages,) = catalogue.one("PRAGMA page_count")
        catalogue._connection.execute(f"PRAGMA max_page_count={pages}")
        catalogue.write(PUT, [(f"{number}" * 100, 1.0) for number in range(1000)])
        assert "full" in catalogue.trouble
        assert catalogue.all("SELECT name FROM facts") == [("a",)]

    def test_a_damaged_table_reads_as_nothing(self, catalogue):
        catalogue._connection.execute("DROP TABLE facts")
        assert catalogue.one(GET, "a") is None
        assert catalogue.all("SELECT * FROM facts") == []
        assert "no such table" in catalogue.trouble

    def test_the_folder_is_named(self, catalogue):
        catalogue._connection.execute("PRAGMA query_only=1")
        catalogue.write(PUT, [("b", 2.0)])
        assert catalogue.trouble.startswith(str(catalogue.folder))

    def test_a_closed_catalogue_is_a_mistake_not_a_trouble(self, catalogue):
        catalogue.close()
        for use in (lambda: catalogue.write(PUT, [("b", 2.0)]), lambda: catalogue.one(GET, "a")):
            with pytest.raises(sqlite3.ProgrammingError):
                use()
        assert catalogue.trouble is None
