import sys
from pathlib import Path

import pytest

from pipelines.data.pairs import read_pairs

sys.path.append(str(Path(__file__).parent / "benchmarks"))
from name_pairs import names, write_names


def test_names_are_real_pairs_each_once_and_the_same_every_time() -> None:
    found = names()
    assert found == names() and len(found) > 3000
    assert len({english for english, _ in found}) == len(found)
    assert {("China", "中国"), ("grinning face", "嘿嘿"), ("French", "法语")} <= set(found)
    assert all(english != chinese and ";" not in chinese for english, chinese in found)


def test_the_trainer_reads_what_is_written(tmp_path: Path) -> None:
    count = write_names(tmp_path / "new" / "names.tsv")
    assert read_pairs(tmp_path / "new" / "names.tsv") == names() and count == len(names())
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["names.tsv"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "names.tsv").write_text("mine")
    with pytest.raises(ValueError, match="already exists"):
        write_names(tmp_path / "names.tsv")
    assert (tmp_path / "names.tsv").read_text() == "mine"
    with pytest.raises(ValueError, match=r"must end in \.tsv, got .*names\.txt"):
        write_names(tmp_path / "names.txt")
