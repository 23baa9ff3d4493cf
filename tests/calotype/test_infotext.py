"""The grammar of the WebUI's `parameters` text, both ways, and what others make of it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype.infotext import Parameters, dump, parse

WEBUI = """a fox in the snow, (soft light:1.2)
<lora:winter:0.8> BREAK masterpiece
Negative prompt: blurry, (worst quality:1.4)
easynegative
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, \
Model hash: cc6cb27103, Model: v1-5-pruned-emaonly, Denoising strength: 0.75, Mask blur: 4, Inpaint area: Only masked, \
Masked area padding: 32, Lora hashes: "winter: 1a2b3c4d5e6f, other: 0a0b0c0d0e0f", \
TI hashes: "easynegative: c74b4e810b03", Version: v1.10.1"""


def test_a_text_of_the_webui_is_taken_apart():
    found = parse(WEBUI)
    assert found.prompt == "a fox in the snow, (soft light:1.2)\n<lora:winter:0.8> BREAK masterpiece"
    assert found.negative == "blurry, (worst quality:1.4)\neasynegative"
    assert list(found.fields)[:4] == ["Steps", "Sampler", "Schedule type", "CFG scale"]
    assert found.fields["Sampler"] == "DPM++ 2M"
    assert found.fields["Lora hashes"] == "winter: 1a2b3c4d5e6f, other: 0a0b0c0d0e0f"
    assert found.fields["Inpaint area"] == "Only masked"
    assert found.size() == (512, 768)


def test_a_text_of_the_webui_is_put_together_again_to_the_letter():
    assert dump(parse(WEBUI)) == WEBUI


def test_what_is_left_out_stands_for_the_webuis_defaults():
    found = parse("fox\nSteps: 20, Sampler: Euler, CFG scale: 7")
    assert found.negative == ""
    assert {
        name: found.get(name) for name in ("Clip skip", "Masked content", "Inpaint area", "Schedule type", "RNG")
    } == {
        "Clip skip": "1",
        "Masked content": "original",
        "Inpaint area": "Whole picture",
        "Schedule type": "Automatic",
        "RNG": "GPU",
    }
    assert found.get("Mask blur") is None
    assert found.size() is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Parameters()),
        ("only a prompt", Parameters("only a prompt")),
        ("a: b, c: d\nNegative prompt: e", Parameters("a: b, c: d", "e")),
        ("fox\nratio: 2, time: noon", Parameters("fox\nratio: 2, time: noon")),
        ("Steps: 1, Seed: 2, Size: 8x8", Parameters("", "", {"Steps": "1", "Seed": "2", "Size": "8x8"})),
        (
            "Negative prompt: dog\nSteps: 1, Seed: 2, Size: 8x8",
            Parameters("", "dog", {"Steps": "1", "Seed": "2", "Size": "8x8"}),
        ),
        (
            "fox\r\nNegative prompt: dog\r\nSteps: 1, Seed: 2, Size: 8x8\r\n",
            Parameters("fox", "dog", {"Steps": "1", "Seed": "2", "Size": "8x8"}),
        ),
    ],
    ids=["nothing", "prompt", "no-fields", "two-are-prose", "no-prompt", "only-negative", "windows"],
)
def test_a_last_line_with_fewer_than_three_fields_is_prompt(text, expected):
    assert parse(text) == expected


def test_lines_of_the_dynamic_prompts_extension_stand_below_the_fields():
    text = (
        "red fox\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1\n"
        "Template: {red|blue} fox, a: 1, b: 2, cc: 3\nmore of it\nNegative Template: dog"
    )
    found = parse(text)
    assert (found.prompt, found.negative) == ("red fox", "dog")
    assert found.fields["Seed"] == "1"
    assert found.fields["Template"] == "{red|blue} fox, a: 1, b: 2, cc: 3\nmore of it"
    assert found.fields["Negative Template"] == "dog"
    assert parse(dump(found)) == found


def test_civitais_lists_are_values_though_nobody_quotes_them():
    resources = '[{"type":"checkpoint","modelVersionId":130072,"modelVersionName":"v5.1, baked"},{"weight":0.8}]'
    found = parse(
        "fox\nSteps: 25, CFG scale: 7, Sampler: DPM++ 2M Karras, Seed: 1, Size: 512x768, Clip skip: 2, "
        f"Created Date: 2024-01-02T03:04:05.1234567Z, Civitai resources: {resources}, Civitai metadata: {{}}"
    )
    assert found.fields["Civitai resources"] == resources
    assert json.loads(found.fields["Civitai resources"])[1] == {"weight": 0.8}
    assert found.fields["Civitai metadata"] == "{}"
    assert found.fields["Created Date"] == "2024-01-02T03:04:05.1234567Z"
    assert found.fields["Clip skip"] == "2"
    assert parse(dump(found)) == found


def test_a_bracket_that_opens_nothing_is_text():
    fields = parse("fox\nSteps: 2, Seed: 3, Style: [open, Size: 8x8").fields
    assert fields == {"Steps": "2", "Seed": "3", "Style": "[open", "Size": "8x8"}


def test_quoted_values_are_json():
    fields = parse(r"fox" + "\n" + r'Steps: 2, Seed: 3, Note: "a \"b\", c: d\ne \\ ü", Bad: "no, End: 1').fields
    assert fields["Note"] == 'a "b", c: d\ne \\ ü'
    assert fields["Bad"] == '"no'
    assert fields["End"] == "1"


def test_a_size_that_is_none_is_refused():
    with pytest.raises(ValueError, match="expected WIDTHxHEIGHT, got 'large'"):
        Parameters("", "", {"Size": "large"}).size()


def test_a_long_text_is_read_too():
    assert parse("word " * 200_000).fields == {}  # time squared would be hours


line = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30).map(str.strip)
prose = (
    st.lists(line, max_size=3)
    .map(lambda lines: "\n".join(lines).strip())
    .filter(lambda text: not any(each.startswith("Negative prompt:") for each in text.split("\n")))
)
key = st.from_regex(r"[A-Za-z][A-Za-z0-9_ /-]{0,12}[A-Za-z0-9]", fullmatch=True).filter(
    lambda name: name not in ("Template", "Negative Template")
)
value = st.text(st.characters(exclude_categories=("Cs",)), max_size=20) | st.sampled_from(
    ['"quoted"', "[1, 2]", "[1", "{}", "a, b: c", "x\ny", " padded ", "\\", '"', "512x768"]
)


@given(st.builds(Parameters, prose, prose, st.dictionaries(key, value, min_size=3, max_size=6)))
def test_what_is_written_is_read_back(parameters):
    assert parse(dump(parameters)) == parameters


@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from(["Steps: 1, ", "Negative prompt:", "\n", "aa: ", '"', ", ", "[", "}"])).map("".join)
)
def test_any_text_is_read_and_reading_what_was_written_of_it_changes_nothing(text):
    once = parse(text)
    if len(once.fields) >= 3:
        assert parse(dump(once)) == once
