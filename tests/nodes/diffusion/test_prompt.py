import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from nodes.diffusion import prompt
from nodes.diffusion.prompt import (
    Lora,
    Mentions,
    Part,
    PromptError,
    attention,
    comfy_attention,
    embedding_names,
    explicit_embeddings,
    joined,
    mentions,
    tags,
    text_at,
    texts,
)


def runs(text):
    """The only section of a text, weights rounded."""
    [section] = attention(text)
    return [(run.text, round(run.weight, 6)) for run in section]


def comfy(text):
    return [(run.text, round(run.weight, 6)) for run in comfy_attention(text)]


def shown(source, calls):
    return [text_at(source, call, calls) for call in range(calls)]


# Tags


@pytest.mark.parametrize(
    ("tag", "lora"),
    [
        ("<lora:ink>", Lora("ink", 1, 1)),
        ("<lora:ink:0.8>", Lora("ink", 0.8, 0.8)),
        ("<lora:ink:0.8:.5>", Lora("ink", 0.8, 0.5)),
        ("<lora:ink:te=0.3>", Lora("ink", 0.3, 0.3)),
        ("<lora:ink:unet=0.3>", Lora("ink", 1, 0.3)),
        ("<lora:ink:0.7:unet=-1>", Lora("ink", 0.7, -1)),
        ("<lyco: my ink : 2 >", Lora("my ink", 2, 2)),
    ],
)
def test_a_tag_says_how_strongly_a_lora_counts(tag, lora):
    assert tags(tag) == ("", (lora,))


def test_tags_are_taken_out_wherever_they_stand_and_in_order():
    text, found = tags("a (fox<lora:b:1>:1.2) [<lora:a:0.5>snow::0.5]<lora:b:1>")
    assert text == "a (fox:1.2) [snow::0.5]"
    assert [lora.name for lora in found] == ["b", "a", "b"]


@pytest.mark.parametrize("text", ["<3", "<lora>", "<lora:>", "a < b : c > d", "<br:x>", "<lora:ink"])
def test_other_angles_are_text(text):
    assert tags(text) == (text, ())


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("<lora:ink:strong>", "<lora:ink:strong>: expected a strength such as 0.8, got 'strong'"),
        ("<lora:ink:1:1:8>", "<lora:ink:1:1:8>: expected <lora:name:text:unet>, or te= and unet="),
        ("<lora:ink:dyn=8>", "<lora:ink:dyn=8>: expected <lora:name:text:unet>, or te= and unet="),
        ("<lora: :1>", "<lora: :1>: expected <lora:name"),
        ("<hypernet:old:1>", "<hypernet:old:1>: hypernetworks are not supported; take the tag out, or use a LoRA"),
    ],
)
def test_a_tag_that_cannot_be_read_is_named(tag, said):
    with pytest.raises(PromptError) as refusal:
        tags(f"a fox {tag}")
    assert str(refusal.value).startswith(said)


def test_mentions_are_loras_and_outright_embeddings():
    text = "<lora:ink:x> <LORA:wash> <hypernet:h:1> <lora:ink> (embedding:bad-hands.pt:1.2), embedding:sub/easy,"
    assert mentions(text) == Mentions(("ink", "wash"), ("bad-hands", "sub/easy"))


@pytest.mark.parametrize(
    "text",
    [
        "an easynegative fox",
        "EasyNegative",
        "very (easynegative:1.2)",
        "uneasynegatives",
        "easy negative",
        "(easy)negative",
        "[easy|hard]negative",
        "[::0.5]easyneg[a:x:0.3]tive",
        "easy<lora:ink:1>negative",
    ],
)
def test_an_embedding_is_found_however_its_name_comes_together(text):
    assert embedding_names(text, ["other", "sub/EasyNegative"]) == ("sub/EasyNegative",)


def test_embeddings_that_do_not_occur_are_not_named():
    assert embedding_names("a fox AND snow [a:b:0.5]", ["easynegative", "", " "]) == ()


def test_outright_embeddings_split_a_text():
    pieces = list(explicit_embeddings("a embedding:x, b embedding:y.safetensors"))
    assert pieces == [("a ", "x"), (" b ", "y"), ("", None)]
    assert list(explicit_embeddings("embedding: a study")) == [("embedding: a study", None)]


# AND


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a fox", ((1, "a fox"),)),
        ("a fox :1.2 AND snow :0.5", ((1.2, "a fox"), (0.5, "snow"))),
        ("a fox:1.5", ((1.5, "a fox"),)),
        ("a fox: -.5 ", ((-0.5, "a fox"),)),
        ("clock at 12:30", ((30, "clock at 12"),)),
        ("a fox:red AND ANDY AND", ((1, "a fox:red"), (1, "ANDY"), (1, ""))),
        ("BRAND and SAND", ((1, "BRAND and SAND"),)),
        ("(a fox:1.2)", ((1, "(a fox:1.2)"),)),
    ],
)
def test_prompts_are_joined_by_the_word_and_with_weights_at_their_ends(text, parts):
    assert joined(text) == parts


# Editing and alternation


def test_a_switch_at_half_of_20_calls_gives_the_first_text_11_of_them():
    assert shown("[a:b:0.5]", 20) == ["a"] * 11 + ["b"] * 9


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("[a:b:3]", "aaaabbbbbb"),
        ("[a:b:3.0]", "aaaaaaaaaa"),
        ("[a:b:0.39]", "aaaabbbbbb"),
        ("[a:b:0]", "bbbbbbbbbb"),
        ("[a:b:0.09]", "bbbbbbbbbb"),
        ("[a:b:-2]", "bbbbbbbbbb"),
        ("[a:b:1]", "aabbbbbbbb"),
        ("[a:b:9]", "aaaaaaaaaa"),
        ("[a:b:1.0]", "aaaaaaaaaa"),
        ("[a:b:99]", "aaaaaaaaaa"),
        ("[a:b: 3e0 ]", "aaaabbbbbb"),
        ("[a:b:1e999]", "aaaaaaaaaa"),
        ("[[a:b:2]:c:5]", "aaabbbcccc"),
        ("[a:[b:c:7]:0.2]", "aaabbbbbcc"),
        ("[a|b|c]", "aabcabcabc"),
        ("[[a|b]:c:4]", "aababccccc"),
        ("[a:b|c:3]", None),
        ("[a:b:c:3]", None),
        ("[a:b:c]", None),
        ("[a:b:3", None),
        ("[a]", None),
        (r"\[a:b:3]", None),
        (r"[a:b:3\]", None),
    ],
)
def test_editing_by_call(source, expected):
    assert shown(source, 10) == (list(expected) if expected else [source] * 10)


def test_a_text_may_begin_or_end_with_a_switch():
    assert texts("a [red :0.3]fox[ in snow::0.7]") == ("a fox in snow", "a red fox in snow", "a red fox")
    assert text_at("[red:2]", 2, 10) == ""
    assert text_at("[red:2]", 3, 10) == "red"


def test_alternation_stays_on_the_first_for_two_calls_and_may_be_empty():
    assert shown("[a|b|]", 6) == ["a", "a", "b", "", "a", "b"]


def test_what_is_no_editing_is_literal_alone():
    assert shown("a|b [x [a:b:1] (c:d:1) [e", 3) == ["a|b [x a (c:d:1) [e"] * 2 + ["a|b [x b (c:d:1) [e"]
    assert shown("[a(b:c:1]", 3) == ["a(b", "a(b", "c"]
    assert text_at("[(a:1.2):[b]:1]", 0, 3) == "(a:1.2)"
    assert text_at("[(a:1.2):[b]:1]", 2, 3) == "[b]"


def test_the_texts_are_those_of_any_number_of_steps():
    assert texts("a fox") == ("a fox",)
    assert texts("[a:b:0.5][c:d:0.2]") == ("ac", "ad", "bd")
    assert set(texts("[a:b:0.5][c:d:2]")) == {"ac", "ad", "bc", "bd"}
    assert set(texts("[a|b][c|d|e]")) == {"ac", "bd", "ae", "bc", "ad", "be"}
    assert texts("[a:b:0][c:d:1.5]") == ("bc",)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("[a|b][a|b|c][a|b|c|d|e][a|b|c|d|e|f|g]", "can stand for too many texts, at most 64"),
        ("".join(f"[{index}|]" + f"[{index}:0.{index}][{index}:{index}]" for index in range(1, 9)), "too many texts"),
        ("[" * 40 + ":a:0.5]" * 40, "nested more than 32 levels deep"),
        ("a" * 60_000, "the prompt has 60,000 characters, at most 50,000"),
        ("a fox\0", r"character 6 of the prompt is '\x00'"),
        ("\ud800", r"character 1 of the prompt is '\ud800'"),
    ],
)
def test_what_cannot_be_encoded_is_refused_with_the_reason(source, said):
    with pytest.raises(PromptError) as refusal:
        texts(source)
    assert said in str(refusal.value)


# Attention


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a fox", [("a fox", 1)]),
        ("(a (b:1.5):1.2)", [("a ", 1.2), ("b", 1.8)]),
        ("(a:1.2", [("a:1.2", 1.1)]),
        ("()", []),
        ("", []),
        ("(a:1.2:1.3)", [("a:1.2", 1.3)]),
        ("(a: 1.2 )", [("a", 1.2)]),
        ("(a:.5)(b:-1)(c:+2.)", [("a", 0.5), ("b", -1), ("c", 2)]),
        ("[a:1.2]", [("a:1.2", round(1 / 1.1, 6))]),
        ("((a)) [b]", [("a", 1.21), (" ", 1), ("b", round(1 / 1.1, 6))]),
        (r"\(a\) \[b\] \\ c\d", [("(a) [b] \\ cd", 1)]),
        ("a) b] :1.2)", [("a) b] :1.2)", 1)]),
        ("[a", [("a", round(1 / 1.1, 6))]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", round(1 / 1.1, 6))]),
        ("(a)(b) c", [("ab", 1.1), (" c", 1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
    ],
)
def test_weights_are_read_from_brackets(text, expected):
    assert runs(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a BREAK b", [["a"], ["b"]]),
        ("(a BREAK b:1.2)", [["a"], ["b"]]),
        ("BREAK a", [[], ["a"]]),
        ("a BREAK\nBREAK b", [["a"], [], ["b"]]),
        ("a BREAK", [["a"], []]),
        ("BREAKING a_BREAK", [["BREAKING a_BREAK"]]),
    ],
)
def test_break_divides_a_text_also_inside_of_weights(text, expected):
    assert [[run.text for run in section] for section in attention(text)] == expected


def test_break_does_not_change_weights():
    assert [[run.weight for run in section] for section in attention("(a BREAK b:1.2) c")] == [[1.2], [1.2, 1.0]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a (b) c", [("a ", 1), ("b", 1.1), (" c", 1)]),
        ("((b:1.3):2)", [("b", 1.3)]),
        ("((b):1.3)", [("b", 1.43)]),
        ("(a (b:1.2))", [("a ", 1.1), ("b", 1.2)]),
        ("(a:0)", [("a", 0)]),
        ("(:1.2)", [(":1.2", 1.1)]),
        (r"\(a\) [b] BREAK c AND d", [("(a) [b] BREAK c AND d", 1)]),
        ("(a", [("(a", 1)]),
        ("a) (b)", [("a) ", 1), ("b", 1.1)]),
    ],
)
def test_comfyui_sets_weights_instead_of_multiplying_them(text, expected):
    assert comfy(text) == expected


# Parts


def test_a_part_says_which_row_counts():
    part = Part(0.5, "[a|b]", (("a", 4), ("b", 2)))
    assert [part.row(call, 4) for call in range(4)] == [4, 4, 2, 4]
    assert Part().row(3, 20) == 0


def test_a_part_survives_json():
    adapter = TypeAdapter(tuple[Part, ...])
    parts = (Part(0.1, "[a:b:0.3]", (("a", 0), ("b", 1))), Part())
    assert adapter.validate_json(adapter.dump_json(parts)) == parts


# Any text

SYNTAX = st.lists(
    st.sampled_from([*"[]():|\\,. ab", "0.5", "2", ":0.3]", ":3]", "AND", "BREAK", "<lora:x:1>", "\n", "é", "🦊"]),
    max_size=24,
).map("".join)
NUMBERS = st.one_of(st.integers(-2, 9).map(str), st.floats(-1, 2).map("{:.2f}".format))
EDITED = st.recursive(
    st.sampled_from(["", "a", "b ", "(c:1.2)", "d, "]),
    lambda inner: st.one_of(
        st.tuples(inner, inner, NUMBERS).map("[{0[0]}:{0[1]}:{0[2]}]".format),
        st.lists(inner, min_size=2, max_size=3).map(lambda options: f"[{'|'.join(options)}]"),
        st.tuples(inner, inner).map("".join),
    ),
    max_leaves=5,
)


@given(st.one_of(SYNTAX, st.text(max_size=60)))
def test_any_text_is_read_without_an_exception(text):
    text = text.replace("\0", "").encode(errors="replace").decode()
    bare, _ = tags(text)
    for _, source in joined(bare):
        for each in texts(source):
            assert attention(each)
            comfy_attention(each)
            assert all(math.isfinite(run.weight) for section in attention(each) for run in section)
    mentions(text)
    embedding_names(text, ["ab", "é"])


@given(st.one_of(EDITED, SYNTAX), st.integers(1, 40), st.data())
def test_what_is_shown_at_any_call_is_one_of_the_texts(source, calls, data):
    call = data.draw(st.integers(0, calls + 1))
    found = texts(source)
    assert text_at(source, call, calls) in found
    assert found[0] == text_at(source, 0, 10**9)


@given(st.text(st.characters(blacklist_characters="[]()\\:|<>\0", blacklist_categories=["Cs"]), max_size=80))
def test_a_prompt_without_special_characters_is_itself(text):
    assert tags(text) == (text, ())
    assert texts(text) == (text,)
    if "BREAK" not in text:
        assert "".join(run.text for section in attention(text) for run in section) == text
    assert "".join(run.text for run in comfy_attention(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "[" * 25_000,
        "(a" * 10_000 + ")" * 10_000,
        "[a:" * 10_000 + "0.5]" * 5_000,
        " " * 50_000,
        ":" * 50_000,
        "[" + "(" * 16_000 + ":" * 16_000 + "]",
        "<lora:" * 8_000,
        "\\" * 50_000,
        "(:1" * 12_000 + ")" * 2_000,
        "🦊" * 50_000,
    ],
)
def test_thousands_of_brackets_are_read_like_any_text(text):
    assert prompt.edited(text)
    assert attention(text)
    assert joined(text)[0][0] == 1.0
    assert tags(text)[1] == ()
    comfy_attention(text)
