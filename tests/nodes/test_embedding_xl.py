"""Embeddings of SDXL: each of its two text encoders takes its own part of the vectors."""

import pytest
import torch
from pipelines import Nodes, plain, xl
from safetensors.torch import save_file

from nodes import text
from nodes.diffusion.prompt import PromptError
from nodes.files import PromptText

WORD = "fox"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """SDXL, SD 1.x, and embeddings that are just what a word means to each of SDXL's text encoders."""
    root = tmp_path_factory.mktemp("models")
    (root / "embeddings").mkdir()
    pipeline = xl(root / "xl")
    plain(root / "plain")
    [token] = pipeline.tokenizer(WORD, add_special_tokens=False).input_ids
    sides = [
        encoder.get_input_embeddings().weight[[token]] for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)
    ]
    layouts = {
        "webui": dict(zip(("clip_l", "clip_g"), sides, strict=True)),
        "trainers": dict(zip(("text_encoders_0", "text_encoders_1"), sides, strict=True)),
        "one": {"<vulpes>": torch.cat(sides, dim=1)},
        "narrow": {"emb_params": torch.zeros(1, 768)},
    }
    for name, tensors in layouts.items():
        save_file(tensors, root / f"embeddings/{name}.safetensors")
    return Nodes(root)


def words(nodes, name, prompt):
    parts = nodes.load(name)
    return text.encode(parts.text, nodes.context, text=nodes.files.resolve(PromptText, prompt))


@pytest.mark.parametrize("name", ["webui", "trainers", "one"])
@pytest.mark.parametrize("prompt", ["a {} in the snow", "a embedding:{}, in the snow"])
def test_vectors_of_a_word_in_both_encoders_mean_that_word(nodes, name, prompt):
    ours, expected = words(nodes, "xl", prompt.format(name)), words(nodes, "xl", f"a {WORD} in the snow")
    torch.testing.assert_close(ours.data, expected.data)
    torch.testing.assert_close(ours.pooled, expected.pooled)


@pytest.mark.parametrize(("model", "name"), [("xl", "narrow"), ("plain", "webui")])
def test_one_for_another_family_is_refused_outright_and_words_with_a_warning_else(nodes, model, name):
    with pytest.raises(PromptError, match=rf"^embedding '{name}': expected one of width \d+, found one "):
        words(nodes, model, f"a embedding:{name}")
    nodes.context.warnings.clear()
    found = words(nodes, model, f"a {name}")
    torch.testing.assert_close(found.data, nodes.words(nodes.load(model), f"a {name}").data)
    [said] = nodes.context.warnings
    assert said.startswith(f"embedding '{name}': expected one of width ")
