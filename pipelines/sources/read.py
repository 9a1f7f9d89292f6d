"""A source of captioned pictures -> rows.

A source is a folder, a .zip or .tar of one, shards of WebDataset, or a set of `datasets`. It is never changed. Pictures
are not read here: `pipelines.sources.check` reads them.
"""

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from pipelines.sources.captioned import is_picture, read_files
from pipelines.sources.files import open_folder, open_tar, open_zip
from pipelines.sources.findings import ERROR, DataError, Finding, printable
from pipelines.sources.pairing import ending
from pipelines.sources.rows import Source
from pipelines.sources.sets import is_name, is_saved, read_set
from pipelines.sources.tables import is_table

MOST_NAMES = 100_000
"""Limit on the file names that the braces of a pattern stand for."""

TARS = (".tar", ".tar.gz", ".tgz")

_BRACES = re.compile(r"\{([^{}]*)\}")


def read_source(source: str | os.PathLike, streaming: bool = False, limit: int | None = None) -> Source:
    """The rows of a source of captioned pictures.

    Args:
        source: a folder, a .zip, .tar or .tar.gz of one, shards of WebDataset (a folder of .tar files, or a pattern
            such as "shards/{000..009}.tar"), a folder saved by `datasets`, or a set's name on the hub.
        streaming: take the rows of a set of `datasets` as they arrive; rows after `limit` are never downloaded.
        limit: how many pictures to take; all if None.

    Raises:
        DataError: the source is not found, has no pictures or no captions, or cannot be read at all.
    """
    if not os.fspath(source):
        raise DataError("no source is named: give a folder, an archive, or the name of a set")
    if limit is not None and limit < 1:
        raise DataError(f"limit must be 1 or more, got {limit}")
    if streaming and limit is None:
        raise DataError("streaming needs a limit on the number of pictures")
    try:
        found = _read(source, streaming, limit)
    except OSError as error:
        raise DataError(f"{printable(str(source))} cannot be read: {error.strerror or error}") from error
    names = set(islice(dict.fromkeys(row.name for row in found.rows), limit))
    return Source([row for row in found.rows if row.name in names], found.findings)


def _read(source: str | os.PathLike, streaming: bool, limit: int | None) -> Source:
    name, path = os.fspath(source), Path(source)
    shown = printable(name)
    if path.is_dir():
        if is_saved(path):
            return read_set(name, streaming, limit)
        files = open_folder(path)
        pictures = any(map(is_picture, files.readers))
        shards = [path / name for name in files.readers if name.lower().endswith(TARS)]
        if shards and not pictures:
            return read_shards(shown, shards)
        endings = {ending(name) for name in files.readers if not is_table(name)}
        if not pictures and ".parquet" in endings:  # the files of a set of `datasets`, as on the hub
            return read_set(name, streaming, limit)
        return read_files(shown, files)
    if path.is_file():
        if path.suffix.lower() == ".zip":
            return read_files(shown, open_zip(path))
        if path.name.lower().endswith(TARS):
            return read_files(shown, open_tar(path))
        raise DataError(f"{shown} is neither a folder nor a .zip, .tar or .tar.gz of captioned pictures")
    if re.search(r"[*?{\[]", name):
        shards = [Path(found) for pattern in expand_braces(name) for found in sorted(glob.glob(pattern))]
        if not shards:
            raise DataError(f"no file matches {shown}")
        return read_shards(shown, shards)
    if is_name(name):
        return read_set(name, streaming, limit)
    raise DataError(f"{shown} not found: give a folder of captioned pictures, or a .zip or .tar of one")


def expand_braces(pattern: str) -> list[str]:
    """The names a shell's braces stand for: "{a,b}.tar" -> "a.tar", "b.tar"; "{08..10}" counts from 08 to 10."""
    names = [pattern]
    while _BRACES.search(names[0]):  # expanding a pair of braces leaves the same other pairs in every name
        names = list(dict.fromkeys(islice(chain.from_iterable(map(_expand_once, names)), MOST_NAMES + 1)))
        if len(names) > MOST_NAMES:
            raise DataError(f"{printable(pattern)} stands for more than {MOST_NAMES:,} files")
    return names


def _expand_once(pattern: str) -> Iterator[str]:
    """A pattern with its first innermost braces expanded, one name after another."""
    found = _BRACES.search(pattern)
    assert found
    before, after = pattern[: found.start()], pattern[found.end() :]
    numbers = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", found[1])
    if not numbers:
        yield from (before + choice + after for choice in found[1].split(","))
        return
    first, last = int(numbers[1]), int(numbers[2])
    if last < first:
        raise DataError(f"{printable(found[0])} must count upwards")
    yield from (f"{before}{number:0{len(numbers[1])}}{after}" for number in range(first, last + 1))


def read_shards(source: str, shards: list[Path]) -> Source:
    """The rows of several tars, one tar after another."""
    rows, findings = [], []
    for shard in shards:
        try:
            found = read_files(shard.name, open_tar(shard))
        except DataError as error:
            findings.append(Finding(ERROR, "unreadable", shard.name, "", str(error)))
            continue
        where = [f"{shard.name}: {row.where}" for row in found.rows]
        rows += [
            replace(row, name=f"{shard.name}/{row.name}", where=w) for row, w in zip(found.rows, where, strict=True)
        ]
        findings += [replace(f, where=f"{shard.name}: {f.where}".rstrip(": ")) for f in found.findings]
    if not rows and not findings:
        raise DataError(f"{source} has no captioned pictures")
    return Source(rows, findings)
