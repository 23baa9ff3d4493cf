from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import graphs
from nodes import style
from nodes.style import Style, StyleError, applied, pick, read

TABLE = b"name,prompt,negative_prompt\nink,ink of {prompt},colour\nwash,watercolour,\n"


def test_a_table_has_a_prompt_and_a_negative_prompt_by_name():
    assert read(TABLE) == {"ink": Style("ink of {prompt}", "colour"), "wash": Style("watercolour", "")}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbf" + TABLE, {"ink", "wash"}),
        (TABLE.replace(b"\n", b"\r\n"), {"ink", "wash"}),
        (b"negative_prompt,name,prompt\nx,ink,y\n", {"ink"}),
        (b"name,text\nink,y\n", {"ink"}),
        (b"name,prompt\n\n# note,\nink\n", {"ink"}),
        (b'name,prompt,negative_prompt\n"ink, black","a\nb","say ""no"""\n', {"ink, black"}),
        (b"", set()),
    ],
)
def test_tables_are_read_as_programs_write_them(data, expected):
    assert read(data).keys() == expected


def test_of_two_styles_of_one_name_the_last_counts():
    assert read(TABLE + b"ink,second,\n")["ink"] == Style("second", "")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a,b\n1,2\n", "line 1: expected the columns name, prompt, negative_prompt, got 'a, b'"),
        (TABLE + b"x,a,b,c\n", "line 4: expected 3 columns, got 4; put commas between quotes"),
        (TABLE + b",a,\n", "line 4: a style without a name"),
        (TABLE + b'x,"a" b,\n', "line 4: expected CSV, got something else"),
        (TABLE + b'x,"a\n', "line 4: expected CSV, got something else"),
        (TABLE + b"x,\xff,\n", "line 4: expected UTF-8, got the byte 0xff"),
        (b"x" * 1_000_001, "expected at most 1,000,000 bytes, got 1,000,001"),
    ],
)
def test_a_damaged_table_is_refused_with_the_line(data, said):
    with pytest.raises(StyleError) as refusal:
        read(data)
    assert str(refusal.value).startswith(said)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_table_or_refused(data):
    try:
        styles = read(data)
    except StyleError:
        return
    assert all(styles)


@pytest.mark.parametrize(
    ("prompt", "added", "expected"),
    [
        ("a fox", "ink of {prompt}, {prompt}", "ink of a fox, a fox"),
        ("a fox", "watercolour", "a fox, watercolour"),
        (" a fox ", " watercolour ", "a fox, watercolour"),
        ("", "watercolour", "watercolour"),
        ("a fox", "", "a fox"),
        ("", "", ""),
    ],
)
def test_a_style_takes_the_prompt_in_or_comes_after_it(prompt, added, expected):
    assert applied(prompt, added) == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("inc", "no style 'inc', did you mean 'ink'?"),
        ("gouache", "no style 'gouache', there are ink, wash"),
    ],
)
def test_a_style_that_is_not_there_is_answered_with_those_that_are(name, said):
    with pytest.raises(StyleError) as refusal:
        pick(read(TABLE), name)
    assert str(refusal.value) == said


def test_the_table_of_the_saved_graphs_has_styles_that_take_the_prompt_in():
    path = Path(graphs.__file__).parent / "inputs" / "styles.csv"
    styles = read(path.read_bytes())
    assert 4 <= len(styles) <= 6
    assert any(style.PLACEHOLDER in each.prompt for each in styles.values())
