import pytest
import torch

from nodes.diffusion import load
from nodes.diffusion.text import chunks, encode


def words(count):
    return " ".join(["face"] * count)


def test_a_chunk_is_begin_tokens_end_and_padding(tokenizer):
    [chunk] = chunks("a face", tokenizer)
    tokens = tokenizer("a face", add_special_tokens=False).input_ids
    assert chunk == [tokenizer.bos_token_id, *tokens, *[tokenizer.eos_token_id] * (76 - len(tokens))]


def test_an_empty_prompt_is_one_chunk(tokenizer):
    assert chunks("", tokenizer) == [[tokenizer.bos_token_id, *[tokenizer.eos_token_id] * 76]]


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (75, 1), (76, 2), (150, 2), (151, 3), (400, 6)])
def test_no_token_is_dropped(count, expected, tokenizer):
    [token] = tokenizer("face", add_special_tokens=False).input_ids
    split = chunks(words(count), tokenizer)
    assert [len(chunk) for chunk in split] == [77] * expected
    assert [tokens for chunk in split for tokens in chunk if tokens == token] == [token] * count


def test_long_prompts_are_silent(tokenizer, capfd):
    chunks(words(400), tokenizer)
    assert capfd.readouterr() == ("", "")


def test_the_padding_is_the_tokenizers(pocket):
    tokenizer = load.tokenizer(pocket)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    assert chunks("face", tokenizer)[0][2:] == [tokenizer.eos_token_id, *[0] * 74]


def test_a_conditioning_is_the_last_layers_normed_states(tokenizer, text_encoder):
    tokens = torch.tensor(chunks("a grinning face", tokenizer))
    expected = text_encoder(tokens).last_hidden_state
    conditioning = encode("a grinning face", tokenizer, text_encoder)
    assert conditioning.shape == (1, 77, text_encoder.config.hidden_size)
    assert torch.equal(conditioning, expected)


def test_chunks_are_encoded_alone_and_stand_one_after_another(tokenizer, text_encoder):
    long = encode(words(75) + " " + words(3), tokenizer, text_encoder)
    assert long.shape == (1, 154, text_encoder.config.hidden_size)
    torch.testing.assert_close(long[:, :77], encode(words(75), tokenizer, text_encoder), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(long[:, 77:], encode(words(3), tokenizer, text_encoder), rtol=1e-4, atol=1e-5)
