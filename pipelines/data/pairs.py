"""Pairs of a source and a target sentence: read from a file, split, shuffled, and batched as tokens.

Shapes: B batch, S source tokens, T target tokens.
"""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipelines.data.stream import Shuffled
from pipelines.sources.findings import DataError
from pipelines.sources.tables import NOT_TEXT

VALIDATION_SHARE = 0.1
"""Share of sources that are held out for validation, by their hash."""

LONGEST_LINE = 10_000
"""Limit on the characters of a line. A longer line means a broken file."""

Pair = tuple[str, str]


def read_pairs(path: str | Path, skip_bad: bool = False) -> list[Pair]:
    """The pairs in a UTF-8 file: a .tsv with two columns, or a .jsonl of {"source", "target"}.

    Args:
        skip_bad: leave out lines that cannot be used, instead of refusing the file.

    Raises:
        DataError: the file is not found, has no pairs, or has lines that cannot be used, which the message lists.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} not found: give a .tsv or .jsonl with a source and a target sentence per line")
    ending = path.suffix.lower()
    if ending not in (".tsv", ".jsonl"):
        raise DataError(f"{path} is neither .tsv nor .jsonl: the ending decides how lines are read")
    pairs, bad = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            pairs.append(_pair(line, ending == ".jsonl"))
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    if bad and not skip_bad:
        raise DataError(f"{path}: {len(bad)} lines cannot be used: {'; '.join(bad)}. Correct them or use --skip-bad")
    if bad:
        print(f"{path}: {len(bad)} lines are left out: {'; '.join(bad[:5])}{'; …' * (len(bad) > 5)}", file=sys.stderr)
    if not pairs:
        raise DataError(f"{path} has no pairs")
    return pairs


def _pair(line: bytes, is_json: bool) -> Pair:
    if len(line) > 4 * LONGEST_LINE:
        raise ValueError(f"{len(line):,} bytes, the limit is {4 * LONGEST_LINE:,}")
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if "\0" in text:
        raise ValueError(f"not UTF-8 text: {NOT_TEXT}")
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
    """(training pairs, held-out pairs), about nine to one.

    Whether a pair is held out depends on its source alone. So adding pairs never moves others, and no source is on both
    sides.
    """
    held_out = [pair for pair in pairs if is_validation_source(pair[0])] or pairs[-1:]
    sources = {source for source, _ in held_out}
    return [pair for pair in pairs if pair[0] not in sources] or pairs, held_out


def is_validation_source(source: str) -> bool:
    """Whether pairs with this source are held out for validation, in any file."""
    return hashlib.sha256(source.encode()).digest()[0] < VALIDATION_SHARE * 256


@dataclass
class PairBatch:
    """Source ids and token_mask (B, S), target_ids and target_mask (B, T). The masks are True at real tokens."""

    ids: Tensor
    token_mask: Tensor
    target_ids: Tensor
    target_mask: Tensor

    def to(self, device: torch.device) -> "PairBatch":
        return PairBatch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


class PairStream:
    """An endless stream of pairs. The order of each epoch is a function of (seed, epoch)."""

    def __init__(self, pairs: list[Pair], seed: int):
        self.pairs = pairs
        self.order = Shuffled([1] * len(pairs), seed)

    def example(self, place: int) -> Pair:
        return self.pairs[self.order[place][0]]


def collate(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> PairBatch:
    """The tokens of pairs, both sides padded."""
    source, target = (tokenizer(list(side), padding=True, return_tensors="pt") for side in zip(*pairs, strict=True))
    return PairBatch(
        source["input_ids"], source["attention_mask"].bool(), target["input_ids"], target["attention_mask"].bool()
    )
