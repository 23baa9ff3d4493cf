"""CLIP's tokenizer with a vocabulary of its own: byte pairs learnt from all phrases."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from pocket.training.phrase import POSITIONS

SIZE = 3500
"""Bytes and merges that are learnt; bytes that end a word and two marks come on top."""

WORD_END, BEGIN, END = "</w>", "<|startoftext|>", "<|endoftext|>"
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What CLIP takes for a word."""


def learn(texts: Iterable[str], folder: Path) -> None:
    """Learn byte pairs and write `folder` as diffusers lays out a CLIP tokenizer."""
    learnt = Tokenizer(BPE(end_of_word_suffix=WORD_END))
    learnt.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    learnt.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    learnt.train_from_iterator(
        texts,
        BpeTrainer(vocab_size=SIZE, initial_alphabet=symbols, end_of_word_suffix=WORD_END, show_progress=False),
    )
    _write(folder, symbols, [tuple(merge) for merge in json.loads(learnt.to_str())["model"]["merges"]])


def load(folder: Path) -> Any:
    """The tokenizer of a folder."""
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _write(folder: Path, symbols: list[str], merges: list[tuple[str, str]]) -> None:
    """Write files that both CLIP tokenizers of transformers 4 and the one of transformers 5 read."""
    vocabulary = dict.fromkeys([*symbols, *(symbol + WORD_END for symbol in symbols)])
    vocabulary |= dict.fromkeys(first + second for first, second in merges)
    vocabulary |= dict.fromkeys((BEGIN, END))
    folder.mkdir(parents=True, exist_ok=True)
    _dump(folder / "vocab.json", {token: place for place, token in enumerate(vocabulary)})
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    marks = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    _dump(folder / "special_tokens_map.json", marks)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": POSITIONS, "do_lower_case": True}
    _dump(folder / "tokenizer_config.json", {**settings, "add_prefix_space": False, "errors": "replace", **marks})


def _dump(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
