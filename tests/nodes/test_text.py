import pytest
import torch
from safetensors.torch import save_file

import pocket
from engine.context import Context
from engine.file import Files, ModelFile
from engine.models import ModelPool
from engine.socket import Packed
from nodes import model, prompt, text
from nodes.diffusion.prompt import Part, PromptError
from nodes.files import PromptText
from nodes.types import Conditioning


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "embeddings").mkdir()
    for name, width in (("afterglow", 128), ("wide", 768)):
        vectors = torch.linspace(-0.05, 0.05, 2 * width).reshape(2, width)
        save_file({"emb_params": vectors}, folder / "embeddings" / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def files(folder):
    return Files([folder], named={"pocket": pocket.FOLDER})


@pytest.fixture(scope="module")
def context(files):
    return Context(models=ModelPool(files))


@pytest.fixture(scope="module")
def encoder(files):
    return model.load(files.resolve(ModelFile, "pocket")).text


@pytest.fixture
def encode(files, encoder, context):
    def call(words="", **options):
        return text.encode(encoder, context, text=files.resolve(PromptText, words), **options)

    return call


def test_a_prompt_is_one_row_at_every_call(encode):
    found = encode("a (red:1.2) face")
    assert found.data.shape == (1, 77, 128)
    [(part, row)] = found.at(3, 20)
    assert (part.weight, row) == (1.0, 0)
    found.check()


def test_a_changing_prompt_shows_each_text_at_its_calls(encode):
    found = encode("a [red:blue:0.5] face")
    red, blue = encode("a red face").data, encode("a blue face").data
    shown = [found.data[row : row + 1] for call in range(20) for _, row in found.at(call, 20)]
    assert all(torch.equal(tokens, red) for tokens in shown[:11])
    assert all(torch.equal(tokens, blue) for tokens in shown[11:])


def test_the_number_of_steps_is_not_part_of_a_conditioning(encode):
    found = encode("a [red:blue:0.5] face")
    assert [found.parts[0].row(2, calls) for calls in (2, 4, 5, 100)] == [1, 0, 0, 0]


def test_joined_prompts_come_with_their_weights(encode):
    found = encode("a face :1.2 AND red :-0.5")
    (first, face), (second, red) = found.at(0, 1)
    assert (first.weight, second.weight) == (1.2, -0.5)
    assert torch.equal(found.data[face : face + 1], encode("a face").data)
    assert torch.equal(found.data[red : red + 1], encode("red").data)
    assert len(encode("a face AND red", negative=True).at(0, 1)) == 1


def test_a_conditioning_survives_the_disk(encode):
    found = encode("a [red:blue:0.5] face :0.7 AND [a|b]")
    packed = found.pack()
    again = Conditioning.unpack(Packed(packed.meta, packed.arrays))
    assert again.parts == found.parts
    assert torch.equal(again.data, found.data)


def test_parts_are_plain_json_on_the_disk(encode):
    [part] = encode("a face").pack().meta["parts"]
    scope = part.pop("scope")
    assert part == {"weight": 1.0, "source": "a face", "rows": [["a face", 0]]}
    assert scope["sizes"]["score"] is None
    assert (scope["start"], scope["end"], scope["area"]) == (0.0, 1.0, None)


@pytest.mark.parametrize(
    ("data", "parts", "said"),
    [
        (
            torch.zeros(1, 77, 8),
            (Part(rows=(("", 1),)),),
            "expected a text for each of 1 rows, got parts with rows [1]",
        ),
        (torch.zeros(2, 77, 8), (Part(),), "expected a text for each of 2 rows, got parts with rows [0]"),
        (torch.zeros(77, 8), (Part(),), "expected finite float32 U x L x D, got torch.float32 (77, 8)"),
        (torch.full((1, 77, 8), torch.nan), (Part(),), "expected finite float32"),
        (torch.zeros(1, 77, 8).half(), (Part(),), "expected finite float32"),
    ],
)
def test_a_conditioning_that_breaks_its_conventions_is_refused(data, parts, said):
    with pytest.raises(ValueError, match="expected") as refusal:
        Conditioning(data, parts).check()
    assert str(refusal.value).startswith(said)


def test_a_linked_prompt_goes_before_the_text(encode, encoder, context, files):
    linked = prompt.prompt(files.resolve(PromptText, "a red face"), files.resolve(PromptText, "blue AND red"))
    assert torch.equal(encode("a cat", prompt=linked.positive).data, encode("a red face").data)
    assert encode("a cat", prompt=linked.negative).parts[0].source == "blue AND red"


def test_an_embedding_is_found_by_its_name_and_encoded(encode):
    plain, glowing = encode("a face, afterglo w"), encode("a face, (AfterGlow:1.1)")
    assert glowing.data.shape == plain.data.shape
    assert torch.equal(glowing.data, encode("a face, (embedding:afterglow:1.1)").data)
    assert not torch.allclose(glowing.data[:, 5], encode("a face,").data[:, 5])


def test_an_embedding_of_another_width_is_refused_where_it_is_named_outright(encode):
    with pytest.raises(
        PromptError, match=r"^embedding 'wide': expected one of width 128, found one for SD 1.x \(768 w"
    ):
        encode("a embedding:wide face")


def test_its_bare_name_is_words_and_a_warning(encode, encoder, files):
    context = Context(models=ModelPool(files))
    words = files.resolve(PromptText, "a wide [wide:red:0.5] face")
    found = text.encode(encoder, context, text=words)
    assert torch.equal(found.data, text.encode(encoder, context, text="a wide [wide:red:0.5] face").data)
    [said] = context.warnings
    assert said.startswith("embedding 'wide': expected one of width 128, found one for SD 1.x (768 wide): its name is")


def test_clip_skip_is_the_encoders(encode, encoder, context):
    skipping = text.clip_skip(encoder, 2)
    assert not torch.allclose(text.encode(skipping, context, text="a face").data, encode("a face").data)
    with pytest.raises(PromptError, match=r"^clip skip 5: this text encoder has 2 layers, expected 1\.\.2$"):
        text.encode(text.clip_skip(encoder, 5), context, text="a face")


@pytest.mark.parametrize("weighting", ["a1111", "no_norm", "ignore", "none", "comfy"])
def test_without_weights_all_weightings_are_alike(encode, weighting):
    assert torch.equal(encode("a red face", weighting=weighting).data, encode("a red face").data)


@pytest.mark.parametrize("words", ["a" * 1_000_000, "(" * 10_000 + "a", "a\0", "a, " * 16_000])
def test_what_cannot_be_encoded_is_refused(encode, words):
    with pytest.raises(PromptError):
        encode(words)
