"""Notebooks in Chinese, from the same cells: the texts change, code and outputs stay.

    python tests/chinese_notebooks.py

writes `NAME.zh.ipynb` for each table `NAME.zh.json` of texts, from `NAME.ipynb`. A table is a list of
{"en": the cell as it is, "zh": the cell in Chinese}, each a list of lines.
"""

import json
from copy import deepcopy
from pathlib import Path

import jupytext
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
TABLES = sorted(NOTEBOOKS.glob("*.zh.json"))


def in_chinese(table: Path) -> NotebookNode:
    """The notebook of a table with its texts in Chinese.

    Raises:
        KeyError: a text is not in the table; it holds the text.
    """
    texts = {"\n".join(one["en"]): "\n".join(one["zh"]) for one in json.loads(table.read_text("utf-8"))}
    notebook = deepcopy(jupytext.read(table.with_name(table.name.replace(".zh.json", ".ipynb"))))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = texts[cell.source]
    return notebook


if __name__ == "__main__":
    for table in TABLES:
        jupytext.write(in_chinese(table), table.with_suffix(".ipynb"), fmt="ipynb")
