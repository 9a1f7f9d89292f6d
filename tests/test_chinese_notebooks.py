"""The Chinese notebooks have every cell of the English ones: each text in Chinese, code and outputs as they are."""

import json
import re
from pathlib import Path

import jupytext
import pytest
from chinese_notebooks import TABLES, in_chinese


def test_the_first_two_notebooks_are_there() -> None:
    assert [table.name for table in TABLES] == ["attention_from_memory.zh.json", "tour.zh.json"]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_no_cell_is_missing_or_left_over(table: Path) -> None:
    made, saved = in_chinese(table), jupytext.read(table.with_suffix(".ipynb"))
    assert [(c.cell_type, c.source, c.get("outputs")) for c in saved.cells] == [
        (c.cell_type, c.source, c.get("outputs")) for c in made.cells
    ], "run python tests/chinese_notebooks.py"
    texts = [cell.source for cell in saved.cells if cell.cell_type == "markdown"]
    assert len(texts) == len(json.loads(table.read_text("utf-8"))) and all(
        re.search(r"[\u4e00-\u9fff]", x) for x in texts
    )


def test_a_text_that_is_not_translated_is_named(tmp_path: Path) -> None:
    table = TABLES[1]
    source = table.with_name("tour.ipynb")
    (tmp_path / source.name).write_text(
        source.read_text("utf-8").replace("How words become a picture", "Another title")
    )
    (tmp_path / table.name).write_text(table.read_text("utf-8"))
    with pytest.raises(KeyError, match="Another title"):
        in_chinese(tmp_path / table.name)
