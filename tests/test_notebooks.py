"""The notebooks run from top to bottom, and each .ipynb has the same cells as its .py source."""

from pathlib import Path

import jupytext
import pytest
from nbconvert.preprocessors import ExecutePreprocessor

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")  # warnings of the kernel are in another process
def test_notebook_runs_and_matches_its_source(source: Path) -> None:
    notebook = jupytext.read(source)
    saved = jupytext.read(source.with_suffix(".ipynb"))
    assert [c.source for c in saved.cells] == [c.source for c in notebook.cells]
    ExecutePreprocessor(timeout=300, kernel_name="python3").preprocess(
        notebook, {"metadata": {"path": str(source.parent)}}
    )


def test_there_are_notebooks() -> None:
    assert "tour" in [path.stem for path in NOTEBOOKS]
