"""Figures of a run as rows of a .jsonl file, and files that are replaced as a whole."""

import json
from pathlib import Path
from typing import Any


def append_row(path: Path, row: dict[str, Any]) -> None:
    """One more line of a .jsonl file."""
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file; none if it is not there. A last line that is still being written is left out."""
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
    """Leave in a .jsonl file what was written up to a step: what came after it will be written again."""
    rows = read_rows(path)
    kept = [row for row in rows if row["step"] <= step]
    if path.exists():
        write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))


def write_whole(path: Path, text: str) -> None:
    """Write a file so that who reads it finds the old text or the new one, and a full disk leaves the old one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
