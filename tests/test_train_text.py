"""Training on pairs of sentences: its files, what a run saves, how it resumes and when it stops."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

import pipelines.training.train_text
from pipelines import TranslationPipeline
from pipelines.data.pairs import PairBatch, read_pairs, split_pairs
from pipelines.runs.checkpoint import checkpoints
from pipelines.runs.failures import DivergedError
from pipelines.runs.folder import run_lock
from pipelines.runs.signals import StoppedError
from pipelines.sources.findings import DataError
from pipelines.training.config import TextConfig
from pipelines.training.state import TrainState
from pipelines.training.train_text import TextModel, train_text

DIGITS = {"1": "One", "2": "Two", "3": "Three", "4": "Four", "5": "Five"}
PAIRS = [(f"{a} {b} {c}", f"{DIGITS[c]} {DIGITS[b]} {DIGITS[a]}") for a in DIGITS for b in DIGITS for c in DIGITS]


def write(path: Path, pairs: list[tuple[str, str]]) -> Path:
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs), encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path: Path) -> TextConfig:
    pairs = write(tmp_path / "pairs.tsv", PAIRS)
    return TextConfig(
        pairs=str(pairs), out=str(tmp_path / "run"), steps=6, batch_size=8, width=32, layers=1, every=3, warmup=10
    )


# The file.


def test_both_kinds_of_file_hold_the_same_pairs(tmp_path: Path) -> None:
    pairs = [("China", "中国"), ("a\u00a0b", "ﬁ"), ('"quoted"', "x, y")]
    lines = [json.dumps({"source": source, "target": target}) for source, target in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n\n")
    assert read_pairs(write(tmp_path / "pairs.tsv", pairs)) == read_pairs(tmp_path / "pairs.jsonl") == pairs


def test_a_byte_order_mark_and_windows_line_ends_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_bytes("\ufeffa\tb\r\nc\td\r\n".encode())
    assert read_pairs(tmp_path / "pairs.tsv") == [("a", "b"), ("c", "d")]


def test_all_bad_lines_are_listed_and_can_be_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [b"good\tgut", b"alone", b"a\tb\tc", b"\tempty", b"empty\t ", b"\xff\xfe\tx", b"long\t" + b"x" * 1_000_000]
    (tmp_path / "pairs.tsv").write_bytes(b"\n".join(bad))
    with pytest.raises(DataError) as error:
        read_pairs(tmp_path / "pairs.tsv")
    said = str(error.value)
    assert "6 lines cannot be used" in said and "--skip-bad" in said
    expected = {2: "1 columns", 3: "3 columns", 4: "source is empty", 5: "target is empty", 6: "not UTF-8", 7: "bytes"}
    for number, what in expected.items():
        assert what in said.split(f"line {number}: ")[1].split(";")[0]
    assert read_pairs(tmp_path / "pairs.tsv", skip_bad=True) == [("good", "gut")]
    assert "6 lines are left out: line 2: 1 columns" in capsys.readouterr().err


def test_bad_lines_of_json_are_listed(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"source": "a"}\nnope\n[1]\n{"source": "a", "target": 3}\n')
    with pytest.raises(DataError, match="4 lines cannot be used"):
        read_pairs(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("no.tsv", None, "not found"), ("a.txt", "a\tb", "neither"), ("a.tsv", "\n \n", "has no pairs")],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path / name)


def test_no_source_is_both_trained_on_and_held_out() -> None:
    pairs = [(f"word {i % 30}", str(i)) for i in range(100)]
    train, held_out = split_pairs(pairs)
    assert held_out and sorted(train + held_out) == sorted(pairs)
    assert not {source for source, _ in train} & {source for source, _ in held_out}
    assert split_pairs([("a", "b")]) == ([("a", "b")], [("a", "b")])


# The run.


def test_it_learns_to_translate_unseen_sentences(config: TextConfig, tmp_path: Path) -> None:
    out = train_text(replace(config, steps=500, batch_size=32, width=64, every=250, dropout=0.0, warmup=50))
    held_out = split_pairs(PAIRS)[1]
    found = TranslationPipeline.from_pretrained(out)([source for source, _ in held_out])
    right = [translation.text == target for translation, (_, target) in zip(found, held_out, strict=True)]
    assert sum(right) >= 10, [translation.text for translation in found]  # of 12, capitals included


def test_a_resumed_run_ends_bit_for_bit_like_one_that_was_never_stopped(config: TextConfig, tmp_path: Path) -> None:
    whole = train_text(config)
    parts = replace(config, out=str(tmp_path / "parts"))
    save = TrainState.save

    def save_and_stop(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainState, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_text(parts)
    train_text(parts, resume=True)
    for name in ("model", "ema", "optimizer"):
        one, other = (
            load_file(checkpoints(Path(out) / "checkpoints")[0] / f"{name}.safetensors") for out in (whole, parts.out)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_a_run_that_a_signal_stops_saves_its_step_and_resumes_bit_for_bit(
    config: TextConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_text(config)
    parts = replace(config, out=config.out + "-parts", save_minutes=0)
    calls = iter(range(99))

    def asked(tokenizer: PreTrainedTokenizerFast, pairs: list) -> PairBatch:
        if next(calls) == 1:
            signal.raise_signal(signal.SIGTERM)
        return collate(tokenizer, pairs)

    collate = pipelines.training.train_text.collate
    with monkeypatch.context() as patch, pytest.raises(StoppedError, match=r"stopped at step [12] of 6, and saved"):
        patch.setattr(pipelines.training.train_text, "collate", asked)
        train_text(parts)
    train_text(parts, resume=True)
    for name in ("model", "ema", "optimizer"):
        one, other = (
            load_file(checkpoints(Path(out) / "checkpoints")[0] / f"{name}.safetensors") for out in (whole, parts.out)
        )
        assert [key for key in one if not torch.equal(one[key], other[key])] == [], name


def test_a_folder_is_trained_by_one_process_at_a_time(config: TextConfig) -> None:
    with (
        run_lock(Path(config.out)),
        pytest.raises(ValueError, match=rf"being trained by process {os.getpid()}: stop that one"),
    ):
        train_text(config)


def test_a_loss_that_is_not_finite_stops_it_and_names_the_pairs(
    config: TextConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = TextModel.forward
    monkeypatch.setattr(TextModel, "forward", lambda self, *batch: forward(self, *batch) * float("inf"))
    with pytest.raises(DivergedError, match=r"step 1 was not taken.*on the pairs (\d \d \d → \w+ \w+ \w+(; )?){8}\."):
        train_text(config)
    assert checkpoints(Path(config.out) / "checkpoints") == []


def test_it_stops_when_the_loss_no_longer_falls_and_keeps_the_best(config: TextConfig, tmp_path: Path) -> None:
    noise = torch.Generator().manual_seed(0)
    letters = "abcdefgh"

    def word() -> str:
        return "".join(letters[int(i)] for i in torch.randint(8, (6,), generator=noise))

    pairs = write(tmp_path / "noise.tsv", [(word(), word()) for _ in range(40)])  # can only be memorised
    out = train_text(replace(config, pairs=str(pairs), steps=2000, every=20, patience=2, warmup=1, dropout=0.0))
    values = [json.loads(line)["held out"] for line in (out / "validation.jsonl").read_text().splitlines()]
    assert len(values) < 100 and values.index(min(values)) == len(values) - 3


def test_an_existing_run_is_not_overwritten(config: TextConfig) -> None:
    train_text(config)
    with pytest.raises(ValueError, match="not empty"):
        train_text(config)
    with pytest.raises(ValueError, match="nothing to resume"):
        train_text(replace(config, out=config.out + "-none"), resume=True)


@pytest.mark.parametrize("setting", [{"steps": 0}, {"batch_size": 1}, {"layers": 0}, {"patience": 0}], ids=str)
def test_a_setting_out_of_its_range_is_refused_by_name(setting: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(setting)).replace("_", "-")):
        TextConfig(pairs="pairs.tsv", **setting)
