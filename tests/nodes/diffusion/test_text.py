import pytest
import torch

from nodes.diffusion import load, text
from nodes.diffusion.prompt import PromptError
from nodes.diffusion.text import PLAIN, Reading, chunks, encode, encode_prompt, framed
from nodes.diffusion.tower import Tower

FOX = torch.linspace(-0.05, 0.05, 3 * 128).reshape(3, 128)


def words(count):
    return " ".join(["face"] * count)


@pytest.fixture
def ids(tokenizer):
    return lambda words: tokenizer(words, add_special_tokens=False).input_ids


@pytest.fixture
def split(tokenizer):
    """The tokens of each chunk."""
    return lambda words, reading=PLAIN: [
        [slot.token for slot in chunk] for chunk in chunks(words, tokenizer, 77, reading)
    ]


@pytest.fixture
def encoded(tokenizer, text_encoder):
    def call(words, weighting="a1111", clip_skip=1, **embeddings):
        return encode(words, [Tower(tokenizer, text_encoder)], Reading(weighting, clip_skip, embeddings)).states

    return call


# Chunks


def test_a_chunk_is_begin_tokens_end_and_padding(tokenizer, ids):
    [chunk] = chunks("a face", tokenizer)
    tokens = ids("a face")
    assert framed(chunk, tokenizer) == [
        tokenizer.bos_token_id,
        *tokens,
        *[tokenizer.eos_token_id] * (76 - len(tokens)),
    ]


def test_an_empty_prompt_is_one_chunk(tokenizer):
    assert chunks("", tokenizer) == [[]]
    assert framed([], tokenizer) == [tokenizer.bos_token_id, *[tokenizer.eos_token_id] * 76]


@pytest.mark.parametrize(("count", "expected"), [(1, [1]), (75, [75]), (76, [75, 1]), (151, [75, 75, 1])])
def test_no_token_is_dropped(count, expected, split, ids):
    found = split(words(count))
    assert [len(chunk) for chunk in found] == expected
    assert [token for chunk in found for token in chunk] == ids("face") * count


def test_long_prompts_are_silent(tokenizer, capfd):
    chunks(words(400), tokenizer)
    assert capfd.readouterr() == ("", "")


def test_the_padding_is_the_tokenizers(pocket):
    tokenizer = load.tokenizer(pocket)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    [chunk] = chunks("face", tokenizer)
    assert framed(chunk, tokenizer)[2:] == [tokenizer.eos_token_id, *[0] * 74]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (54, 20, [75, 5]),  # the comma is the 55th token, 20 before the end: all that follows is cut there
        (55, 19, [56, 24]),
        (60, 14, [61, 19]),
        (74, 0, [75, 5]),
    ],
)
def test_a_full_chunk_ends_after_a_comma_near_its_end(before, after, expected, split):
    found = split(f"{words(before)}, {words(after + 5)}")
    assert [len(chunk) for chunk in found] == expected


def test_a_comma_after_a_full_chunk_begins_the_next(split, ids):
    found = split(f"{words(75)}, face")
    assert found[1] == ids(", face")


def test_break_ends_a_chunk_also_an_empty_one(split, ids):
    assert split("a BREAK face") == [ids("a"), ids("face")]
    assert split("BREAK BREAK face") == [[], [], ids("face")]
    assert split("face BREAK") == [ids("face")]
    assert split("BREAK") == [[]]
    assert split(f"{words(75)} BREAK face") == [ids("face") * 75, ids("face")]


def test_without_weighting_brackets_and_break_are_tokens(split, ids):
    assert split("(a) BREAK [b:1.2]", Reading("none")) == [ids("(a) BREAK [b:1.2]")]
    assert split("(a) [face:1.2]", Reading("ignore")) == [ids("a") + ids("face") + ids(":1.2")]


def test_comfyui_moves_short_groups_and_cuts_long_ones(split):
    reading = Reading("comfy")
    assert [len(chunk) for chunk in split(f"({words(70)}) ({words(7)})", reading)] == [70, 7]
    assert [len(chunk) for chunk in split(f"({words(70)}) ({words(8)})", reading)] == [75, 3]


# States


def test_a_conditioning_is_the_last_layers_normed_states(tokenizer, text_encoder, encoded):
    tokens = torch.tensor([framed(chunk, tokenizer) for chunk in chunks("a grinning face", tokenizer)])
    conditioning = encoded("a grinning face")
    assert conditioning.shape == (1, 77, text_encoder.config.hidden_size)
    assert torch.equal(conditioning, text_encoder(tokens).last_hidden_state)


def test_chunks_are_encoded_alone_and_stand_one_after_another(encoded):
    long = encoded(words(75) + " " + words(3))
    assert long.shape == (1, 154, 128)
    torch.testing.assert_close(long[:, :77], encoded(words(75)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(long[:, 77:], encoded(words(3)), rtol=1e-4, atol=1e-5)


def test_clip_skip_counts_layers_from_the_end(tokenizer, text_encoder, encoded):
    tokens = torch.tensor([framed(chunk, tokenizer) for chunk in chunks("a face", tokenizer)])
    layers = text_encoder(tokens, output_hidden_states=True).hidden_states
    assert len(layers) == 3  # what goes in, and what comes out of each of two layers
    assert torch.equal(encoded("a face", clip_skip=2), text_encoder.final_layer_norm(layers[1]))
    assert torch.equal(encoded("a face"), text_encoder.final_layer_norm(layers[2]))


@pytest.mark.parametrize("skip", [0, 3])
def test_a_clip_skip_beyond_the_layers_is_refused(encoded, skip):
    with pytest.raises(PromptError, match=rf"^clip skip {skip}: this text encoder has 2 layers, expected 1\.\.2$"):
        encoded("a face", clip_skip=skip)


# Weights


@pytest.mark.parametrize("weighting", ["a1111", "no_norm", "ignore", "comfy"])
def test_a_weight_of_1_everywhere_changes_not_a_bit(encoded, weighting):
    assert torch.equal(encoded("(a red face:1.0)", weighting), encoded("a red face", "none"))


def test_weights_multiply_states_and_the_mean_of_the_chunk_is_restored(encoded, ids):
    plain, weighed = encoded("a red face"), encoded("a (red:1.5) face")
    factors = torch.ones(77, 1)
    factors[1 + len(ids("a")) : 1 + len(ids("a red"))] = 1.5
    expected = plain * factors
    torch.testing.assert_close(weighed, expected * (plain.mean() / expected.mean()))
    torch.testing.assert_close(weighed.mean(), plain.mean())
    torch.testing.assert_close(encoded("a (red:1.5) face", "no_norm"), expected)
    assert torch.equal(encoded("a (red:1.5) face", "ignore"), plain)


def test_the_mean_is_restored_per_chunk(encoded):
    both = encoded("a (red:1.5) face BREAK a blue face")
    torch.testing.assert_close(both[:, :77], encoded("a (red:1.5) face"))
    torch.testing.assert_close(both[:, 77:], encoded("a blue face"))


def test_comfyui_weighs_the_distance_from_the_empty_prompt(encoded):
    plain, blank, weighed = encoded("a red face"), encoded(""), encoded("a (red face:0.5)", "comfy")
    torch.testing.assert_close(weighed[:, 2:4], (plain[:, 2:4] + blank[:, 2:4]) / 2)
    assert torch.equal(weighed[:, 4:], plain[:, 4:])
    assert torch.equal(weighed[:, :2], plain[:, :2])


@pytest.mark.parametrize("words", ["(face:1001)", "(" * 500 + "face", "(face:-2000)"])
def test_a_weight_beyond_sense_is_refused(encoded, words):
    with pytest.raises(PromptError, match=r"^'face' has the weight .*, expected at most 1000 either way$"):
        encoded(words)


# Embeddings


@pytest.mark.parametrize("weighting", ["a1111", "no_norm", "ignore", "none"])
@pytest.mark.parametrize("words", ["a bad fox face", "a BAD Fox face", "a embedding:bad-fox face"])
def test_vectors_stand_where_the_name_stood(encoded, text_encoder, weighting, words):
    name = "bad-fox" if "embedding" in words else "bad fox"
    table = text_encoder.get_input_embeddings().weight.clone()
    found = encoded(words, weighting, **{name: FOX})
    before = encoded("a face", weighting)
    assert torch.equal(found[:, :2], before[:, :2])
    assert not torch.allclose(found[:, 2:], before[:, 2:])
    assert torch.equal(text_encoder.get_input_embeddings().weight, table)
    assert not text_encoder.get_input_embeddings()._forward_hooks


def test_an_embedding_of_a_tokens_own_vectors_is_that_token(encoded, text_encoder, ids):
    table = text_encoder.get_input_embeddings().weight
    found = encoded("a bad fox face", **{"bad fox": table[ids("red apple")].detach()})
    torch.testing.assert_close(found, encoded("a red apple face"))


def test_all_vectors_have_the_weight_of_the_name(encoded, text_encoder, ids):
    table = text_encoder.get_input_embeddings().weight
    found = encoded("a (bad fox:1.3) face", **{"bad fox": table[ids("red apple")].detach()})
    torch.testing.assert_close(found, encoded("a (red apple:1.3) face"))


def test_the_longest_name_counts(tokenizer):
    reading = Reading(embeddings={"bad": FOX[:1], "bad fox": FOX, "fox": FOX[:2]})
    sizes = [len(chunks(words, tokenizer, 77, reading)[0]) for words in ("bad", "bad fox", "fox")]
    assert sizes == [1, 3, 2]


def test_an_embedding_is_never_cut(tokenizer):
    reading = Reading(embeddings={"fox": FOX})
    assert [len(chunk) for chunk in chunks(f"{words(73)} fox face", tokenizer, 77, reading)] == [73, 4]
    assert [len(chunk) for chunk in chunks(f"{words(72)} fox face", tokenizer, 77, reading)] == [75, 1]
    comfy = Reading("comfy", embeddings={"fox": FOX})
    assert [len(chunk) for chunk in chunks(f"{words(73)} embedding:fox", tokenizer, 77, comfy)] == [73, 3]


def test_comfyui_knows_embeddings_only_outright(tokenizer, ids):
    reading = Reading("comfy", embeddings={"sub/fox": FOX})
    assert [slot.token for slot in chunks("a fox", tokenizer, 77, reading)[0]] == ids("a fox")
    assert len(chunks("a embedding:FOX, face", tokenizer, 77, reading)[0]) == len(ids("a face")) + 3


@pytest.mark.parametrize(
    ("words", "embeddings", "said"),
    [
        (
            "embedding:fox",
            {"fox": torch.zeros(2, 768)},
            "embedding 'fox': expected one of width 128, found one for SD 1.x (768 wide): take it out",
        ),
        ("embedding:fox", {"fox": torch.zeros(128)}, "embedding 'fox': expected vectors of shape (N, D), found (128,)"),
        ("fox", {"fox": torch.zeros(76, 128)}, "embedding 'fox' has 76 vectors, a chunk holds 75"),
        ("embedding:foxy", {"fox": FOX}, "no embedding 'foxy' for this prompt, did you mean 'fox'?"),
        ("embedding:wolf", {}, "no embedding 'wolf' for this prompt; take it out, or add its file"),
    ],
)
def test_an_embedding_that_does_not_fit_is_named(encoded, words, embeddings, said):
    with pytest.raises(PromptError) as refusal:
        encoded(words, **embeddings)
    assert str(refusal.value).startswith(said)


def test_the_bare_name_of_an_embedding_for_another_model_is_words_and_said(tokenizer, text_encoder):
    said = []
    reading = Reading(embeddings={"Fox": torch.zeros(2, 768), "fo": torch.ones(1, 128)}, warn=said.append)
    made = encode("a fox", [Tower(tokenizer, text_encoder)], reading).states
    assert torch.equal(made, encode("a fox", [Tower(tokenizer, text_encoder)]).states)
    assert len(said) == 1
    assert said[0].startswith("embedding 'Fox': expected one of width ")
    assert said[0].endswith(", found one for SD 1.x (768 wide): its name is read as words; take it out, or put an "
                            "embedding for this model in its place")  # fmt: skip


def test_a_shorter_name_that_fits_is_found_where_a_longer_one_does_not(tokenizer, text_encoder):
    reading = Reading(embeddings={"red fox": torch.zeros(2, 768), "red": FOX})
    alone = Reading(embeddings={"red": FOX})
    towers = [Tower(tokenizer, text_encoder)]
    assert torch.equal(encode("a red fox", towers, reading).states, encode("a red fox", towers, alone).states)


def test_where_only_outright_names_count_nothing_is_said_of_bare_ones(tokenizer, text_encoder):
    reading = Reading("comfy", embeddings={"fox": torch.zeros(2, 768)}, warn=pytest.fail)
    encode("a fox", [Tower(tokenizer, text_encoder)], reading)


def test_an_embedding_that_does_not_occur_may_have_any_width(encoded):
    assert torch.equal(encoded("a face", fox=torch.zeros(2, 768)), encoded("a face"))


def test_a_failing_encoder_is_left_as_it_was(encoded, text_encoder, monkeypatch):
    table = text_encoder.get_input_embeddings()
    failing = text_encoder.encoder.layers[0].register_forward_hook(lambda *_: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError):
            encoded("fox", fox=FOX)
    finally:
        failing.remove()
    assert not table._forward_hooks


# Prompts that change, and prompts joined by AND


@pytest.fixture
def prompted(tokenizer, text_encoder):
    def call(words, reading=PLAIN, **options):
        encoded, parts = encode_prompt(words, [Tower(tokenizer, text_encoder)], reading, **options)
        return encoded.states, parts

    return call


def test_a_plain_prompt_is_its_text(prompted, encoded):
    data, [part] = prompted("a (red:1.2) face")
    assert torch.equal(data, encoded("a (red:1.2) face"))
    assert (part.weight, part.source, part.rows) == (1.0, "a (red:1.2) face", (("a (red:1.2) face", 0),))


def test_each_text_of_a_changing_prompt_is_encoded_as_if_alone(prompted, encoded):
    data, [part] = prompted("a ([red:(blue:1.5):0.5]:1.2) face")
    assert [row for _, row in part.rows] == [0, 1]
    for words, row in part.rows:
        assert torch.equal(data[row : row + 1], encoded(words))


def test_texts_of_one_prompt_are_filled_up_with_empty_chunks(prompted, encoded):
    data, [part] = prompted("a face[ BREAK red:2]")
    assert data.shape == (2, 154, 128)
    short, long = (data[row] for _, row in part.rows)
    assert torch.equal(short[:77], encoded("a face")[0])
    assert torch.equal(short[77:], encoded("")[0])
    assert torch.equal(long, encoded("a face BREAK red")[0])


def test_joined_prompts_have_their_own_rows_and_the_shorter_ones_hold_their_last_vector(prompted, encoded):
    data, parts = prompted("a face :0.5 AND red BREAK blue AND the face")
    assert [(part.weight, part.rows[0][1]) for part in parts] == [(0.5, 0), (1.0, 1), (1.0, 2)]
    assert data.shape == (3, 154, 128)
    assert torch.equal(data[0, :77], encoded("a face")[0])
    assert torch.equal(data[0, 77:], encoded("a face")[0, -1:].expand(77, -1))


def test_equal_texts_share_a_row(prompted):
    data, parts = prompted("face AND [face|red] :2 AND face")
    assert len(data) == 2
    assert [part.rows for part in parts] == [(("face", 0),), (("face", 0), ("red", 1)), (("face", 0),)]


def test_a_negative_prompt_knows_no_and(prompted):
    _, [part] = prompted("a face AND red:1.5", negative=True)
    assert part.source == "a face AND red:1.5"
    _, parts = prompted("[a face:red:2] b", negative=True)
    assert len(parts[0].rows) == 2


def test_comfyui_knows_neither_and_nor_editing(prompted):
    _, [part] = prompted("a [face:red:2] AND b:1.5", Reading("comfy"))
    assert part.rows == (("a [face:red:2] AND b:1.5", 0),)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("face " * 10_001, "the prompt has 50,005 characters, at most 50,000 are read"),
        ("a, " * 16_000, "the prompt fills"),
        ("a face\0", "character 7 of the prompt is"),
        ("a face at 12:3000", "'a face at 12' has the weight 3000, expected at most 1000"),
    ],
)
def test_a_prompt_beyond_bounds_is_refused(prompted, words, said):
    with pytest.raises(PromptError) as refusal:
        prompted(words)
    assert str(refusal.value).startswith(said)


@pytest.mark.parametrize("words", ["", "   ", "\n", "🦊🦊 face", "<|endoftext|> face", "[" * 300, "\x7f"])
def test_odd_prompts_are_encoded(prompted, words):
    data, _ = prompted(words)
    assert torch.isfinite(data).all()


def test_prompts_of_models_of_half_precision_are_weighed_in_float32(tokenizer, pocket):
    half = load.text_encoder(pocket, dtype=torch.bfloat16)
    assert encode("a (face:1.2)", [Tower(tokenizer, half)]).states.dtype == torch.float32


def test_the_bound_on_chunks_counts_all_texts(prompted, monkeypatch):
    monkeypatch.setattr(text, "MAX_CHUNKS", 3)
    with pytest.raises(PromptError, match="fills 4 chunks of 75 tokens, counting every text"):
        prompted("[a|b|c|d]")
