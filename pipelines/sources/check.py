"""The check of somebody's data before training: every file is read and decoded once, and everything found is reported.

Findings and a few dozen bytes per picture are kept in memory, but no picture. The data is never changed.
"""

import os
import signal
import statistics
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from pipelines.sources.duplicates import alike
from pipelines.sources.findings import (
    ERROR,
    NOTE,
    WARNING,
    DataError,
    Finding,
    as_json,
    check_on_bad,
    lines,
    of_severity,
    printable,
)
from pipelines.sources.look import Look, look_at_all
from pipelines.sources.read import read_source
from pipelines.sources.rows import Row
from pipelines.tokenizer import MAX_TOKENS, train_tokenizer
from unet_xattn.words import WORD

ROWS_AT_ONCE = 32
"""Rows a worker process gets at a time."""

FEW = 256
"""Rows that one process checks before others would have started."""


@dataclass(frozen=True)
class Vocabulary:
    """Counts of the words of captions, of captions by their number of words, and of different captions."""

    words: Counter[str]
    lengths: Counter[int]
    different: int

    @classmethod
    def of(cls, captions: Sequence[str]) -> "Vocabulary":
        words: Counter[str] = Counter()
        lengths: Counter[int] = Counter()
        for caption in captions:
            found = WORD.findall(caption.lower())
            words.update(found)
            lengths[len(found)] += 1
        return cls(words, lengths, len(set(captions)))

    def lines(self, count: int = 12) -> list[str]:
        """A summary of at most three lines."""
        if not self.words:
            return []
        rare = sorted(word for word, times in self.words.items() if times == 1)
        often = ", ".join(f"{word} {times:,}" for word, times in self.words.most_common(count))
        once = f", {len(rare):,} of them used once: {', '.join(rare[:count])}" + (", …" if len(rare) > count else "")
        low, high = min(self.lengths), max(self.lengths)
        middle = statistics.median_low(self.lengths.elements())
        return [
            f"{len(self.words):,} different words{once if rare else ''}.",
            f"Most frequent: {often}.",
            f"Captions have {low:,} to {high:,} words (median {middle:,}).",
        ]


@dataclass(frozen=True)
class Report:
    """The result of checking a source: the usable rows, with digest and sides filled in, and all findings."""

    source: str
    rows: list[Row]
    findings: list[Finding]
    vocabulary: Vocabulary

    @property
    def errors(self) -> list[Finding]:
        return of_severity(self.findings, ERROR)

    @property
    def pictures(self) -> int:
        return len({row.name for row in self.rows})

    def summary(self) -> list[str]:
        """A few lines about the source as a whole."""
        left_out = len({(finding.name, finding.where) for finding in self.errors})
        opens = f"{left_out:,} cannot be used." if left_out else "Every picture opens."
        counts = [len(of_severity(self.findings, severity)) for severity in (ERROR, WARNING, NOTE)]
        summary = [f"{self.pictures:,} pictures, {self.vocabulary.different:,} different captions. {opens}"]
        if any(counts):
            summary.append("{:,} errors, {:,} warnings, {:,} notes.".format(*counts))
        if self.rows:
            low, high = (choose(self.rows, key=lambda row: row.width * row.height) for choose in (min, max))
            summary.append(f"Pictures have {low.width}×{low.height} to {high.width}×{high.height} pixels.")
        return summary + [printable(line) for line in self.vocabulary.lines()]

    def table(self) -> str:
        """The findings, one per line: every error, and the first of each kind of warning or note."""
        return "\n".join(lines(self.findings))

    def raise_if_unfit(self, on_bad: str) -> None:
        """Raise DataError if no row can be used, or if there are errors and `on_bad` is not "skip"."""
        if self.rows and (on_bad == "skip" or not self.errors):
            return
        first = [str(finding).removeprefix("error: ") for finding in self.errors[:5]]
        more = f"; and {len(self.errors) - 5:,} more errors" if len(self.errors) > 5 else ""
        if not self.rows:
            raise DataError(f"{self.source} has no picture that can be used: {'; '.join(first)}{more}")
        advice = "correct them, or skip these pictures with --on-bad skip"
        raise DataError(f"{self.source} has {len(self.errors):,} errors, {advice}: {'; '.join(first)}{more}")

    def as_json(self) -> dict[str, Any]:
        """Everything except the pictures, including every finding."""
        return {
            "source": self.source,
            "pictures": self.pictures,
            "findings": as_json(self.findings),
            "captions": {
                "different": self.vocabulary.different,
                "words": {printable(word): count for word, count in self.vocabulary.words.most_common()},
                "lengths": dict(sorted(self.vocabulary.lengths.items())),
            },
        }


def check(
    source: str | os.PathLike,
    *,
    size: int = 64,
    on_bad: str = "fail",
    streaming: bool = False,
    limit: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """`examine` a source before training on it. With `progress`, the findings are printed.

    Args:
        on_bad: "fail", or "skip" to leave out rows with errors.

    Raises:
        DataError: the source cannot be read, has no usable row, or has errors and `on_bad` is "fail".
    """
    check_on_bad(on_bad)
    report = examine(source, size=size, streaming=streaming, limit=limit, workers=workers, progress=progress)
    if progress:
        print(*lines(report.findings), *report.summary()[:2], sep="\n")
    report.raise_if_unfit(on_bad)
    return report


def examine(
    source: str | os.PathLike,
    *,
    size: int = 64,
    streaming: bool = False,
    limit: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Read every file of a source once and report everything found.

    Args:
        source, streaming, limit: as in `read.read_source`.
        size: side of the pictures in training, in pixels.
        workers: number of processes. If None, one per core, but only this one for few pictures or outside the main
            thread.
        progress: show a progress bar on a terminal.

    Raises:
        DataError: the source as a whole cannot be read.
    """
    rows, findings = read_source(source, streaming, limit)
    kept: list[Row] = []
    outlines: list[int] = []
    shaped: list[int] = []  # places in `kept` of the pictures that are not flat
    tints = bytearray()
    findings = list(findings)
    for row, look in zip(rows, _looks(rows, size, workers, progress), strict=True):
        findings += look.findings
        if any(finding.severity == ERROR for finding in look.findings):
            continue
        if look.outline is not None:
            shaped.append(len(kept))
            outlines.append(look.outline)
            tints += look.tints
        kept.append(replace(row, digest=look.digest, width=look.width, height=look.height))
    findings += _same(kept)
    findings += _alike(kept, shaped, outlines, bytes(tints))
    findings += _over_long(kept)
    report = Report(printable(os.fspath(source)), kept, findings, Vocabulary.of([row.caption for row in kept]))
    if report.pictures > 1 and report.vocabulary.different == 1:
        what = f"all {report.pictures:,} pictures have the same, {kept[0].caption[:80]!r}: no word tells them apart"
        findings.append(Finding(WARNING, "one caption", "captions", "", what))
    return report


def _looks(rows: Sequence[Row], size: int, workers: int | None, progress: bool) -> Iterator[Look]:
    """A look at each row, in order."""
    alone = len(rows) < FEW or threading.current_thread() is not threading.main_thread()
    workers = workers or (1 if alone else os.cpu_count() or 1)
    chunks = [rows[i : i + ROWS_AT_ONCE] for i in range(0, len(rows), ROWS_AT_ONCE)]
    look = partial(look_at_all, size=size)
    with tqdm(total=len(rows), desc="check", unit="picture", disable=None if progress else True) as bar:

        def counted(looks: Iterable[list[Look]]) -> Iterator[Look]:
            for several in looks:
                bar.update(len(several))
                yield from several

        if workers == 1:
            yield from counted(map(look, chunks))
            return
        pool = ProcessPoolExecutor(workers, initializer=_ignore_interrupts)
        try:
            yield from counted(pool.map(look, chunks))
        except BrokenProcessPool as error:
            raise DataError("a process that read pictures was killed, perhaps for lack of memory") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """Ignore Ctrl+C, which a terminal sends to all processes: the main process acts on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _same(rows: Sequence[Row]) -> Iterator[Finding]:
    """Findings on files of equal content."""
    first: dict[str, Row] = {}
    for row in rows:
        earlier = first.setdefault(row.digest, row)
        if row.name != earlier.name:
            other = "" if row.caption == earlier.caption else ", with another caption"
            yield Finding(WARNING, "duplicate", row.name, row.where, f"the same file as {earlier.name}{other}")


def _alike(rows: Sequence[Row], shaped: Sequence[int], outlines: Sequence[int], tints: bytes) -> Iterator[Finding]:
    """Findings on pictures that look alike without equal content."""
    colours = np.frombuffer(tints, np.uint8).reshape(-1, 48)
    for late, early in alike(np.array(outlines, np.uint64), colours).items():
        row, earlier = rows[shaped[late]], rows[shaped[early]]
        if row.digest != earlier.digest:
            yield Finding(WARNING, "near-duplicate", row.name, row.where, f"looks like {earlier.name}")


def _over_long(rows: Sequence[Row]) -> Iterator[Finding]:
    """Findings on captions and translations with more tokens than a model trained on these captions reads."""
    long = [  # start, end and the first space are tokens; every other token is at least one character
        (row, what, text)
        for row in rows
        for what, text in (("caption", row.caption), ("translation", row.translation))
        if len(text) > MAX_TOKENS - 3
    ]
    if not long:
        return
    tokenizer = train_tokenizer(row.caption for row in rows)
    for row, what, text in long:
        count = len(tokenizer(text, verbose=False)["input_ids"])
        if count > MAX_TOKENS:
            detail = f"{count} tokens, only the first {MAX_TOKENS - 1} are read"
            yield Finding(WARNING, f"long {what}", row.name, row.where, detail)
