"""Textual inversion (Gal et al. 2022, https://arxiv.org/abs/2208.01618): a few vectors that stand in for words."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pocket.training.caption import MARKS


class Vocabulary(nn.Module):
    """A frozen table of embeddings in which some rows are learnt anew, beginning as the mean of others."""

    def __init__(self, table: nn.Embedding, rows: Tensor, like: Tensor) -> None:
        super().__init__()
        self.table = table.requires_grad_(requires_grad=False)
        start = table.weight[like].mean(0)
        self.learnt = nn.Parameter(start.repeat(len(rows), 1))
        self.places = nn.Buffer(torch.full((table.num_embeddings,), -1, device=rows.device))
        self.places[rows] = torch.arange(len(rows), device=rows.device)

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings of token ids."""
        places = self.places[ids]
        return torch.where(
            (places >= 0)[..., None], self.learnt[places.clamp(min=0)], functional.embedding(ids, self.table.weight)
        )


def invert(text: Any, tokenizer: Any, like: str) -> Vocabulary:
    """Let the vectors of the placeholder's marks be learnt, from where the words `like` are, and freeze all else."""
    text.requires_grad_(requires_grad=False)
    device = text.get_input_embeddings().weight.device

    def rows(words: str) -> Tensor:
        return torch.tensor(tokenizer(words, add_special_tokens=False)["input_ids"], device=device)

    vocabulary = Vocabulary(text.get_input_embeddings(), rows(MARKS), rows(like))
    text.set_input_embeddings(vocabulary)
    return vocabulary


def a1111(vocabulary: Vocabulary) -> dict[str, Tensor]:
    """The vectors as the WebUI stores an embedding in safetensors, (vectors, width)."""
    return {"emb_params": vocabulary.learnt.detach().float().cpu().contiguous()}
