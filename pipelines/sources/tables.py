"""Tables of captions, as people and programs write them -> lines of Python values with their numbers."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Names of tables, in any letter case."""

NOT_TEXT = "it has NUL characters, as UTF-16 has: save it as UTF-8"

FILE_NAME, CAPTIONS = "file_name", ("text", "caption")
COLUMNS = (FILE_NAME, *CAPTIONS, "translation", "weight", "masks")
"""The columns read of a table. The caption is in the first of `CAPTIONS` that the table has."""

Line = tuple[int, dict[str, Any] | str]
"""A line's number, from 1, and its values or what is wrong with the line."""


def is_table(name: str) -> bool:
    """Whether a file is read as a table of captions."""
    return PurePosixPath(name).name.lower() in TABLES


def read_table(name: str, data: bytes) -> Iterator[Line]:
    """The lines of a .jsonl, .csv or .parquet file, one after another. No content makes this raise.

    Bytes that are not UTF-8 become surrogates in the text, which `is_utf8` detects.
    """
    read = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[PurePosixPath(name).suffix.lower()]
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") and read is not _parquet:
        return iter([(1, "UTF-16: save it as UTF-8")])
    if b"\0" in data[:4] and read is not _parquet:
        return iter([(1, f"not UTF-8 text: {NOT_TEXT}")])
    return read(data.removeprefix(b"\xef\xbb\xbf"))


def is_utf8(text: str) -> bool:
    """Whether a text can be encoded as UTF-8, that is, has no surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _jsonl(data: bytes) -> Iterator[Line]:
    for number, line in enumerate(io.BytesIO(data), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line.decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON: {error}"
            continue
        yield number, values if isinstance(values, dict) else 'not a JSON object: expected {"file_name": …, "text": …}'


def _csv(data: bytes) -> Iterator[Line]:
    text = data.decode("utf-8", "surrogateescape")
    head = re.split(r"[\r\n]", text, maxsplit=1)[0]
    # Spreadsheets separate cells by semicolons in countries where the comma marks decimals.
    separator = max(",;\t", key=head.count)
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    begin = 1
    try:
        _ = table.fieldnames  # reads the first line
        begin = table.line_num + 1
        for row in table:
            if None in row:
                yield begin, "more cells than columns: a text with commas needs quotes"
            else:
                yield begin, {key.strip(): value for key, value in row.items()}
            begin = table.line_num + 1  # a quoted cell may span several lines
    except csv.Error as error:
        yield begin, f"not csv, and no later line is read: {error}"


def _parquet(data: bytes) -> Iterator[Line]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pa.BufferReader(data))
        columns = [name for name in COLUMNS if name in file.schema_arrow.names]
        if FILE_NAME not in columns or not any(name in columns for name in CAPTIONS):
            yield 1, dict.fromkeys(file.schema_arrow.names)
            return
        number = 0
        for batch in file.iter_batches(1024, columns=columns):
            values = [_values(batch.column(i)) for i in range(len(columns))]
            for row in zip(*values, strict=True):
                number += 1
                yield number, dict(zip(columns, row, strict=True))
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        yield 1, f"not parquet: {error}"


def _values(column: Any) -> list:
    """A column's values. Text that is not UTF-8 is decoded as in `read_table`, where Arrow would raise."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
        return [None if v is None else v.decode("utf-8", "surrogateescape") for v in column.to_pylist()]
    return column.to_pylist()
