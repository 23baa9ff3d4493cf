"""What people write after NAME= on a command line, value by value."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype.values import MOST, listed, number_range, parted, reordered, whole_range


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("cat,dog, fox", ["cat", "dog", "fox"]),
        (' cat , "a dog, running" ', ["cat", "a dog, running"]),
        ('"a ""big"" cat",dog', ['a "big" cat', "dog"]),
        ("cat\ndog,fox\r\nowl", ["cat", "dog", "fox", "owl"]),
        ("cat,,dog,", ["cat", "", "dog", ""]),
        ("", []),
    ],
)
def test_a_list_is_a_line_of_csv_or_several(text, values):
    assert listed(text) == values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1-5", [1, 2, 3, 4, 5]),
        ("1-5 (+2)", [1, 3, 5]),
        ("1-3 [5]", [1, 1, 2, 2, 3]),
        ("1-10 [5]", [1, 3, 5, 7, 10]),
        ("-3-2", [-3, -2, -1, 0, 1, 2]),
        ("10-5 (-3)", [10, 7]),
    ],
)
def test_ranges_of_whole_numbers_are_the_webuis(text, values):
    assert whole_range(text) == values


@pytest.mark.parametrize(
    ("text", "values"),
    [("5-1", [5, 4, 3, 2, 1]), ("5-1 (-1)", [5, 4, 3, 2, 1]), ("5-1 (-2)", [5, 3, 1]), ("-1--3", [-1, -2, -3])],
)
def test_ranges_of_whole_numbers_may_lead_down(text, values):
    assert whole_range(text) == values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0-1 (+0.25)", [0, 0.25, 0.5, 0.75, 1]),
        ("1-0 [3]", [1, 0.5, 0]),
        ("0-1 (+0.3)", [0, 0.3, 0.6, 0.9]),
        ("0.1-0.5", [0.1]),
        (".5-1", [0.5]),
        ("0.5-3", [0.5, 1.5, 2.5]),
        ("1-0 (-0.5)", [1, 0.5, 0]),
        ("3-1", [3, 2, 1]),
        ("0-1 (+0.1)", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        ("1e-3-3e-3 (+1e-3)", [0.001, 0.002, 0.003]),
    ],
)
def test_ranges_of_numbers_count_decimals_and_never_overshoot(text, values):
    assert number_range(text) == values


@pytest.mark.parametrize("text", ["1-5(2)", "7", "-7", "a-b", "1-5 (2)", "1-5 [2.5]", "1-5 (+2) x", "", "1-"])
def test_other_texts_are_no_ranges(text):
    assert whole_range(text) is None
    assert number_range(text) is None


def test_a_small_number_is_no_range():
    assert number_range("1e-3") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1-5 (-1)", "a step of -1 does not lead from 1 to 5"),
        ("5-1 (+1)", r"a step of \+1 does not lead from 5 to 1"),
        ("1-5 (+0)", "does not lead"),
        ("1-5 [0]", "stands for 0 values"),
        ("0-999999999999", "1 to 10000 are allowed"),
        ("1-2 [99999]", "1 to 10000 are allowed"),
    ],
)
def test_a_range_that_leads_nowhere_or_too_far_is_refused(text, message):
    for read in (whole_range, number_range):
        with pytest.raises(ValueError, match=message):
            read(text)


def test_a_range_of_numbers_that_are_too_large_is_refused():
    with pytest.raises(ValueError, match="beyond the numbers that there are"):
        number_range("1e999-1e999")


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 20))
def test_a_range_stays_between_its_ends_and_begins_with_the_first(first, last, step):
    sign = "+" if last >= first else "-"
    values = whole_range(f"{first}-{last} ({sign}{step})")
    assert values[0] == first
    assert all(min(first, last) <= value <= max(first, last) for value in values)
    assert abs(last - values[-1]) < step
    assert number_range(f"{first}-{last} ({sign}{step})") == values


@given(st.floats(0, 1).map(lambda x: round(x, 3)), st.floats(0, 1).map(lambda x: round(x, 3)), st.integers(2, 30))
def test_so_many_numbers_reach_both_ends(first, last, count):
    values = number_range(f"{first:.3f}-{last:.3f} [{count}]")
    assert (values[0], values[-1], len(values)) == (first, last, count)


def test_words_take_every_order_at_the_places_where_they_stand():
    assert reordered("a red fox, a blue owl", ["blue", "red"]) == [
        (("blue", "red"), "a blue fox, a red owl"),
        (("red", "blue"), "a red fox, a blue owl"),
    ]
    assert len(reordered("a b c", ["a", "b", "c"])) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["red", "green"], "'green' does not stand in 'a red fox'"),
        (["red", "ed"], "overlaps"),
        (["fox", "fox"], "overlaps"),
    ],
)
def test_words_that_cannot_be_reordered_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        reordered("a red fox", words)


def test_too_many_orders_are_refused():
    words = list("abcdefgh")
    with pytest.raises(ValueError, match=f"more than {MOST} orders"):
        reordered(" ".join(words), words)


def test_values_of_several_names_are_joined():
    assert parted("512x768", 2) == ["512", "768"]
    assert parted("euler : karras", 2) == ["euler", "karras"]
    assert parted("dpm_fast_x:2", 2) == ["dpm_fast_x", "2"]
    for text in ("512", "euler x karras", "1x2x3", "a:b:c"):
        with pytest.raises(ValueError, match="expected 2 values joined by"):
            parted(text, 2)
