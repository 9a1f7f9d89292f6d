"""The figures of a run as rows of a .jsonl file, and files that are replaced atomically."""

import json
from pathlib import Path
from typing import Any


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a line to a .jsonl file."""
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file, none if it does not exist. A line that is still being written is skipped."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def drop_rows_after(path: Path, step: int) -> None:
    """Remove the rows of a .jsonl file after a step, because a resumed run writes them again."""
    rows = read_rows(path)
    kept = [row for row in rows if row["step"] <= step]
    if path.exists():
        write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically: a reader finds the old text or the new one, and a full disk leaves the old one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
