import pytest
import torch
from safetensors.torch import save_file

from engine.errors import FileError
from engine.file import Files
from nodes import prompt
from nodes.diffusion.prompt import PromptError
from nodes.files import EmbeddingFile, LoraFile, PromptText, Styles
from nodes.prompt import written
from nodes.types import Loras, Prompt

TABLE = """name,prompt,negative_prompt
ink,"ink of {prompt}",colour
soft,<lora:wash:0.5>soft light,easybad
lost,<lora:gone:1>,
"""


@pytest.fixture
def folder(tmp_path):
    for kind, name in (("loras", "wash"), ("loras", "line"), ("embeddings", "EasyBad"), ("embeddings", "fox")):
        (tmp_path / kind).mkdir(exist_ok=True)
        save_file({"emb_params": torch.full((2, 4), float(len(name)))}, tmp_path / kind / f"{name}.safetensors")
    (tmp_path / "styles.csv").write_text(TABLE)
    return tmp_path


@pytest.fixture
def files(folder):
    return Files([folder])


@pytest.fixture
def digest(files):
    return lambda kind, name: files.find(kind, name).digest.hex()


@pytest.fixture
def write(files):
    """The node, with its literals resolved as the engine does it."""

    def call(text="", negative="", styles=(), source="styles.csv"):
        text, negative = (files.resolve(PromptText, literal) for literal in (text, negative))
        return prompt.prompt(text, negative, styles, files.resolve(Styles, source))

    return call


def test_a_plain_prompt_is_itself(write):
    assert write("a wolf", "blurry") == (Prompt("a wolf"), Prompt("blurry", negative=True), Loras())


def test_without_anything_all_is_empty():
    assert prompt.prompt() == (Prompt(""), Prompt("", negative=True), Loras())


def test_loras_are_taken_out_of_both_prompts_in_order(write, digest):
    found = write("a <lora:wash:0.5:0.25>wolf<lora:line>", "<lora:wash:-1>blurry")
    wash, line = (digest(LoraFile, name) for name in ("wash", "line"))
    assert (found.positive.text, found.negative.text) == ("a wolf", "blurry")
    assert found.loras == Loras(((wash, 0.5, 0.25), (line, 1.0, 1.0), (wash, -1.0, -1.0)))


def test_embeddings_are_named_where_they_may_occur(write, digest):
    found = write("a fox", "(easybad:1.2), embedding:fox")
    assert found.positive.embeddings == (("fox", digest(EmbeddingFile, "fox")),)
    assert sorted(found.negative.embeddings) == [
        ("EasyBad", digest(EmbeddingFile, "EasyBad")),
        ("fox", digest(EmbeddingFile, "fox")),
    ]


def test_styles_are_added_to_both_prompts_one_after_another(write):
    found = write("a wolf", "blurry", ("ink", "soft"))
    assert found.positive.text == "ink of a wolf, soft light"
    assert found.negative.text == "blurry, colour, easybad"


def test_a_style_brings_its_loras_and_embeddings(write, digest):
    found = write("a wolf", styles=("soft",))
    assert found.loras == Loras(((digest(LoraFile, "wash"), 0.5, 0.5),))
    assert found.negative.embeddings == (("EasyBad", digest(EmbeddingFile, "EasyBad")),)
    assert found.positive.embeddings == ()


@pytest.mark.parametrize(
    ("styles", "source", "said"),
    [
        (("inc",), "styles.csv", "styles.csv: no style 'inc', did you mean 'ink'?"),
        (("lost",), "styles.csv", "no lora 'gone', which a style mentions; put its file into a folder loras"),
        (("ink",), "stiles.csv", "style 'ink': no table of styles 'stiles.csv', did you mean 'styles.csv'?"),
    ],
)
def test_a_style_that_cannot_be_used_is_named(write, styles, source, said):
    with pytest.raises(PromptError) as refusal:
        write("a wolf", styles=styles, source=source)
    assert str(refusal.value) == said


def test_what_a_style_mentions_and_is_not_there_does_not_matter_until_it_is_used(write):
    assert write("a wolf", styles=("ink",)).positive.text == "ink of a wolf"


def test_a_damaged_table_is_refused_with_its_name_and_line(write, folder):
    (folder / "bad.csv").write_text("name,prompt\nink,a,b\n")
    with pytest.raises(FileError, match=r"^'bad\.csv', line 2: expected 2 columns, got 3; put commas between quotes"):
        write("a wolf", source="bad.csv")


def test_styles_cannot_grow_a_prompt_without_bounds(write, folder):
    (folder / "styles.csv").write_text('name,prompt\ntwice,"{prompt} {prompt}"\n')
    with pytest.raises(PromptError, match=r"^the prompt has [\d,]+ characters, at most 50,000 are read$"):
        write("a wolf", styles=("twice",) * 40)


@pytest.mark.parametrize("text", ["a" * 1_000_000, "(" * 10_000 + "a" * 60_000, "a\0", "<lora:wash:very>"])
def test_a_text_that_is_no_prompt_is_refused(write, text):
    with pytest.raises(PromptError):
        write(text)


def test_a_prompt_without_the_node_may_not_mention_loras(files):
    assert written(files.resolve(PromptText, "a wolf"), negative=True) == Prompt("a wolf", negative=True)
    with pytest.raises(PromptError, match=r"write the text into a node `prompt`, link its `loras` to `model.loras`"):
        written(files.resolve(PromptText, "a <lora:wash:1> wolf"))


def test_prompts_and_loras_survive_the_disk():
    for value in (Prompt("a fox", (("fox", "ab"),), negative=True), Loras((("ab", 0.5, 1.0),))):
        assert type(value).unpack(value.pack()) == value
        assert value.identity() == type(value).unpack(value.pack()).identity()
        assert value.nbytes() > 0
