"""Pairs of a source and a target sentence: read from a file, split, shuffled and batched.

Shapes: B batch, S source tokens, T target tokens.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipelines.data.stream import Shuffled
from pipelines.sources.read import DataError

LONGEST_LINE = 10_000
"""Characters. A longer line is no sentence but a broken file."""

Pair = tuple[str, str]


def read_pairs(path: str | Path, skip_bad: bool = False) -> list[Pair]:
    """Pairs of a source and a target sentence, in UTF-8: a .tsv with two columns, or a .jsonl of {"source", "target"}.

    Args:
        skip_bad: leave out lines that cannot be used, rather than refuse the file.

    Raises:
        DataError: there is no such file, no pair in it, or there are lines that cannot be used (all of them listed).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}: give a .tsv or .jsonl with a source and a target sentence a line")
    if path.suffix not in (".tsv", ".jsonl"):
        raise DataError(f"{path} is neither .tsv nor .jsonl: the name says how its lines are to be read")
    pairs, bad = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            pairs.append(_pair(line, path.suffix == ".jsonl"))
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    if bad and not skip_bad:
        raise DataError(f"{path}: {len(bad)} lines cannot be used: {'; '.join(bad)}. Mend or --skip-bad")
    if not pairs:
        raise DataError(f"{path} holds no pairs")
    return pairs


def _pair(line: bytes, is_json: bool) -> Pair:
    if len(line) > 4 * LONGEST_LINE:
        raise ValueError(f"{len(line):,} bytes are no sentence")
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if is_json:
        try:
            row = json.loads(text)
        except json.JSONDecodeError:
            raise ValueError("not JSON") from None
        if not isinstance(row, dict) or not all(isinstance(row.get(side), str) for side in ("source", "target")):
            raise ValueError('needs the texts "source" and "target"')
        sides = [row["source"], row["target"]]
    else:
        sides = text.split("\t")
        if len(sides) != 2:
            raise ValueError(f"{len(sides)} columns instead of 2")
    source, target = (side.strip() for side in sides)
    if not source or not target:
        raise ValueError(f"the {'source' if not source else 'target'} is empty")
    return source, target


def split_pairs(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """(to train on, held out): every tenth pair is held out, and whatever else has the same source."""
    held_out = pairs[7::10] or pairs[-1:]
    sources = {source for source, _ in held_out}
    return [pair for pair in pairs if pair[0] not in sources] or pairs, held_out


@dataclass
class PairBatch:
    """ids and token_mask (B, S), target_ids and target_mask (B, T): the masks say which tokens are real."""

    ids: Tensor
    token_mask: Tensor
    target_ids: Tensor
    target_mask: Tensor

    def to(self, device: torch.device) -> "PairBatch":
        return PairBatch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


class PairStream:
    """The pairs again and again, each epoch in an order that is a function of (seed, epoch)."""

    def __init__(self, pairs: list[Pair], seed: int):
        self.pairs = pairs
        self.order = Shuffled([1] * len(pairs), seed)

    def example(self, place: int) -> Pair:
        return self.pairs[self.order[place][0]]


def collate(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> PairBatch:
    """Pairs as tokens, both sides padded."""
    source, target = (tokenizer(list(side), padding=True, return_tensors="pt") for side in zip(*pairs, strict=True))
    return PairBatch(
        source["input_ids"], source["attention_mask"].bool(), target["input_ids"], target["attention_mask"].bool()
    )
