"""The command as a person types it: its output, its exit code, and its files."""

import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import TextToImagePipeline
from pipelines.runs.resume import flag_of
from pipelines.scenes.captions import LANGUAGES
from pipelines.training.config import TextConfig, TrainConfig
from pipelines.training.parts import load_examples
from pipelines.training.train import train
from ui.cli import main
from unet_xattn import AttentionTrace, Transformer


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A function of arguments -> (exit code, standard output, standard error) of the command."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["unet-xattn", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def fails(run):
    """A function of arguments -> the one line the command prints when it fails."""

    def fails(*arguments: str | Path) -> str:
        code, _, err = run(*arguments)
        assert code != 0
        lines = err.strip().splitlines()
        assert len(lines) == 1, err
        return lines[0]

    return fails


@pytest.fixture(scope="module")
def tiny_model(tiny_pipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def writer(tiny_pipe, tmp_path_factory) -> Path:
    """A model that translates too."""
    text_encoder = Transformer(len(tiny_pipe.tokenizer), width=32, heads=2, encoder_layers=1, decoder_layers=1)
    folder = tmp_path_factory.mktemp("writer")
    TextToImagePipeline(tiny_pipe.tokenizer, text_encoder, tiny_pipe.unet, tiny_pipe.scheduler).save_pretrained(folder)
    return folder


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as file:
        return file.size


def test_generate_writes_the_picture_and_its_word_sheet(run, fails, tiny_model: Path, tmp_path: Path) -> None:
    arguments = ("generate", "A red circle!", "--model", tiny_model, "--steps", "2", "--out", tmp_path / "new")
    code, out, err = run(*arguments)
    assert code == 0, err
    picture, sheet = (Path(line) for line in out.split())
    assert size_of(picture) == (32, 32)
    assert size_of(sheet)[0] > 32

    before = picture.read_bytes()
    assert "already exists" in fails(*arguments)
    assert picture.read_bytes() == before


def test_a_kept_trace_is_exported_with_no_model(run, fails, tiny_model: Path, tmp_path: Path) -> None:
    arguments = ("generate", "a red circle", "--model", tiny_model, "--steps", "2", "--keep", "full", "--out", tmp_path)
    code, out, err = run(*arguments)
    assert code == 0, err
    kept = tmp_path / "a-red-circle-seed0.safetensors"
    assert str(kept) in out
    code, out, err = run("export", kept, "--out", tmp_path / "all")
    assert code == 0, err
    assert sorted(Path(line).name for line in out.split()) == sorted(p.name for p in (tmp_path / "all").iterdir())
    assert "is not empty" in fails("export", kept, "--out", tmp_path / "all")
    assert "image 1 does not exist" in fails("export", kept, "--out", tmp_path / "other", "--image", "1")
    assert "keep can name" in fails(*arguments, "--keep", "layers", "--overwrite")
    assert not (tmp_path / "other").exists()


def test_words_are_found_in_an_existing_picture(run, fails, tiny_model: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "mine.png")
    arguments = ("attribute", tmp_path / "mine.png", "a red ground", "--model", tiny_model, "--out", tmp_path / "read")
    code, out, err = run(*arguments)
    assert code == 0, err
    assert [Path(line).name for line in out.split()] == ["mine-words.png", "mine.safetensors"]
    assert AttentionTrace.load(tmp_path / "read" / "mine.safetensors").prompts == ["a red ground"]
    assert "already exists" in fails(*arguments)
    (tmp_path / "none.png").write_bytes(b"no picture")
    assert "none.png" in fails("attribute", tmp_path / "none.png", "a star", "--model", tiny_model)


def test_what_a_person_should_know_is_told_by_every_command(run, fails, writer: Path, tmp_path: Path) -> None:
    Image.new("RGB", (400, 20), "red").save(tmp_path / "strip.png")
    notes = {}
    for name, arguments in {
        "generate": ("generate", "a zebra", "--steps", "1", "--out", tmp_path / "a"),
        "signs": ("generate", "!!!", "--steps", "1", "--keep", "step", "--out", tmp_path / "b"),
        "attribute": ("attribute", tmp_path / "strip.png", "a zebra", "--out", tmp_path / "c"),
        "translate": ("translate", "a zebra", "--beams", "1"),
        "known": ("translate", "a red circle", "--beams", "1"),
    }.items():
        code, _, err = run(*arguments, "--model", writer)
        assert code == 0, err
        notes[name] = err.strip().splitlines()
    unknown = 'note: words unknown to the model: "zebra"'
    assert notes["generate"] == notes["translate"] == [unknown]
    assert notes["signs"] == ["note: the text has no words"] and notes["known"] == []
    cut = "note: 80% of the picture is cut off: the model reads its middle at 128×32 pixels"
    assert notes["attribute"] == [unknown, cut]
    for kept, name in (("c/strip", "attribute"), ("b/picture-seed0", "signs")):
        code, out, err = run("export", tmp_path / f"{kept}.safetensors", "--out", tmp_path / name)
        assert code == 0 and "page.html" in out
        assert err.strip().splitlines() == notes[name]


def test_a_damaged_picture_is_one_line(fails, tiny_model: Path, tmp_path: Path) -> None:
    Image.effect_noise((90, 90), 90).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    for name, kept in (("head.jpg", 9), ("cut.jpg", len(data) // 2), ("empty.jpg", 0)):
        (tmp_path / name).write_bytes(data[:kept])
        line = fails("attribute", tmp_path / name, "a star", "--model", tiny_model, "--out", tmp_path / "new")
        assert f"{name} cannot be used: " in line
    assert not (tmp_path / "new").exists()


def test_the_bundled_model_draws_in_a_process_of_its_own_with_no_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ui.cli", "generate", "a red circle and an astronaut", "--steps", "2"]
    command += ["--seed", str(2**64 - 1), "--out", str(tmp_path)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "astronaut" in done.stderr  # unknown to the model
    assert "circle" not in done.stderr
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failing_process_prints_one_line_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ui.cli", "generate", "  ", "--out", str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["   "], "empty"),
        (["red " * 25_000], "characters"),
        (["red " * 100], "tokens"),
        (["a red circle", "--steps", "0"], "between 1 and 1000"),
        (["a red circle", "--seed", "-1"], "seed"),
        (["a red circle", "--seed", str(2**64)], "seed"),
        (["a red circle", "--model", "no-such-model"], "shapes"),
        (["a red circle", "--device", "warp"], "device 'warp' cannot be used on this machine: choose cpu"),
        (["a red circle", "--device", "meta"], "device 'meta' cannot be used on this machine: choose cpu"),
    ],
    ids=["empty", "huge", "too long", "no steps", "negative seed", "seed too large", "no such model"]
    + ["no such device", "a device without values"],
)
def test_bad_input_is_one_line_and_leaves_nothing(fails, arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in fails("generate", *arguments, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_train_refuses_a_folder_in_use_and_data_it_cannot_read(fails, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "--resume" in fails("train", "--out", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert "nothing to resume" in fails("train", "--out", tmp_path / "none", "--resume")
    assert "has no pictures" in fails("train", "--data", tmp_path / "mine", "--out", tmp_path / "new")
    assert "no-such-data" in fails("train", "--data", "no-such-data", "--out", tmp_path / "new")
    assert "--fit must be crop or pad, got 'squash'" in fails("train", "--fit", "squash", "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_trained_folder_of_pictures_generates(run, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    with open(folder / "metadata.jsonl", "w") as file:
        for i in range(4):
            Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(folder / f"{i}.png")
            file.write(json.dumps({"file_name": f"{i}.png", "text": f"noise number {i}"}) + "\n")
    run_folder = train(
        TrainConfig(data=str(folder), out=str(tmp_path / "run"), steps=2, batch_size=2, size=32, every=2)
    )
    code, _, err = run("generate", "noise number 2", "--model", run_folder, "--steps", "2", "--out", tmp_path / "out")
    assert code == 0, err
    assert "unknown" not in err


def test_evaluate_prints_a_table_for_each_language_and_writes_json(run, fails, writer: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    code, out, err = run("evaluate", writer, "--prompts", "2", "--steps", "1", "--json", file)
    assert code == 0, err
    report = json.loads(file.read_text())
    for language, name in LANGUAGES.items():
        assert f"prompts of shapes in {name}" in out and report[language]["settings"]["language"] == language
        assert report[language]["held_out"]["model"]["all_correct"]["n"] == 20
    assert "translation en → zh, held-out pairs: 0 of 10 mean the same" in out
    assert report["translation"]["seen"]["zh → en"]["n"] == 10
    assert "already exists" in fails("evaluate", writer, "--json", file)


def test_translate_prints_a_line_and_draws_the_alignment(run, fails, writer: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "new" / "alignment.png"
    arguments = ("translate", "a red circle", "--model", writer, "--attention", sheet, "--beams", "1")
    code, out, err = run(*arguments)
    assert code == 0, err
    assert len(out.splitlines()) == 1
    assert min(size_of(sheet)) > 26
    assert "already exists" in fails(*arguments)
    assert run(*arguments, "--overwrite")[0] == 0
    assert "nothing to translate" in fails("translate", " ", "--model", writer)


def test_a_model_of_ones_own_pairs_translates(run, fails, tmp_path: Path) -> None:
    pairs, out = tmp_path / "pairs.tsv", tmp_path / "run"
    pairs.write_text("".join(f"{i}\tnumber {i}\n" for i in range(30)))
    arguments = ("train-text", "--pairs", pairs, "--out", out, "--steps", "2", "--batch-size", "4")
    code, printed, err = run(*arguments)
    assert code == 0 and str(out) in printed, err
    code, printed, err = run("translate", "3", "--model", out)
    assert code == 0 and len(printed.splitlines()) == 1, err
    assert "not empty" in fails(*arguments)
    # Options beside --resume are applied and printed, or refused; those that change nothing are ignored.
    code, printed, err = run(*arguments[:5], "--steps", "4", "--batch-size", "4", "--resume")
    assert code == 0 and "from step 2 on: steps 4 instead of 2" in printed and "batch size" not in printed, err
    assert "--seed (0) cannot change on resume" in fails(*arguments, "--seed", "1", "--resume")
    assert "cannot end after 2" in fails(*arguments, "--resume")
    assert "add --resume" in fails(*arguments[:3], "--out", tmp_path / "other", "--allow-changes")
    pairs.write_text("".join(f"{i}\tno. {i}\n" for i in range(30)))
    assert "--allow-changes" in fails("train-text", "--pairs", pairs, "--out", out, "--steps", "5", "--resume")
    pairs.write_text("one\ntwo\n")
    assert "line 1: 1 columns" in fails("train-text", "--pairs", pairs, "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_model_without_a_decoder_cannot_translate(fails, tiny_model: Path) -> None:
    assert "has no decoder, so it cannot translate" in fails("translate", "a red circle", "--model", tiny_model)


def test_data_check_lists_all_findings_and_draws_a_sheet(run, make_folder, tmp_path: Path) -> None:
    folder = make_folder("pictures", ["a cat", "", "a dog"])
    (folder / "2.png").write_bytes(b"")
    arguments = ("data", "check", folder, "--sheet", tmp_path / "sheet.png", "--json", tmp_path / "found.json")
    code, out, err = run(*arguments)
    assert code == 1 and "2 errors" in err and len(err.strip().splitlines()) == 1
    assert "error: 1.png (metadata.jsonl:2): no caption" in out and "error: 2.png (metadata.jsonl:3): empty" in out
    assert size_of(tmp_path / "sheet.png")[0] > 64
    found = json.loads((tmp_path / "found.json").read_text())
    assert [f["name"] for f in found["findings"] if f["severity"] == "error"] == ["1.png", "2.png"]
    assert found["captions"]["words"] == {"a": 1, "cat": 1}

    before = {name: (tmp_path / name).read_bytes() for name in ("sheet.png", "found.json")}
    assert "already exists" in run(*arguments)[2]
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    code, out, _ = run("data", "check", folder, "--on-bad", "skip")
    assert code == 0 and "1 pictures, 1 different captions. 2 cannot be used." in out


def test_data_check_of_impossible_arguments_is_one_line(fails, make_folder, tmp_path: Path) -> None:
    folder = make_folder("pictures", ["a cat"])
    assert "not found" in fails("data", "check", tmp_path / "none")
    assert "fail or skip" in fails("data", "check", folder, "--on-bad", "delete")
    assert ".png" in fails("data", "check", folder, "--sheet", tmp_path / "sheet.pdf")
    assert "limit" in fails("data", "check", folder, "--streaming")


def test_training_reads_a_zip_and_skips_bad_pictures_if_asked(run, make_folder, tmp_path: Path) -> None:
    folder = make_folder("pictures", ["a cat", "", "a dog"])
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    settings = ("--steps", "1", "--batch-size", "2", "--size", "32", "--every", "1")
    arguments = ("train", "--data", tmp_path / "mine.zip", "--out", tmp_path / "run", *settings)
    code, out, err = run(*arguments)
    assert code == 1 and "1.png" in out and "--on-bad skip" in err and not (tmp_path / "run").exists()
    assert run(*arguments, "--on-bad", "skip")[0] == 0
    assert (tmp_path / "run" / "model_index.json").is_file()


@pytest.mark.parametrize("data", ["shapes", "emoji", "pictures"])
def test_data_preview_draws_what_training_gets(run, fails, make_folder, data: str, tmp_path: Path) -> None:
    source = make_folder("pictures", ["a cat", "a dog"]) if data == "pictures" else data
    arguments = ("data", "preview", source, "--count", "10", "--size", "32", "--out", tmp_path / "new" / "sheet.png")
    code, out, err = run(*arguments)
    assert code == 0 and out.strip().endswith("sheet.png"), err
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    columns, rows = 8, 2
    cells = pixels[: pixels.shape[0] // rows, : pixels.shape[1] // columns]  # the first of ten in two rows
    example = load_examples(TrainConfig(data=str(source), size=32)).example(0).picture
    places = [(y, x) for y in range(cells.shape[0] - 31) for x in range(cells.shape[1] - 31)]
    assert any((cells[y : y + 32, x : x + 32] == example).all() for y, x in places)
    assert "already exists" in fails(*arguments)


def test_data_preview_of_a_folder_with_errors_is_refused(run, make_folder, tmp_path: Path) -> None:
    folder = make_folder("pictures", ["a cat", ""])
    code, _, err = run("data", "preview", folder, "--out", tmp_path / "sheet.png")
    assert code == 1 and "--on-bad skip" in err and not (tmp_path / "sheet.png").exists()


def test_bench_works_with_its_defaults_on_a_cpu(run, fails, tiny_model: Path, tmp_path: Path) -> None:
    code, out, err = run("bench", "--model", tiny_model, "--device", "cpu", "--json", tmp_path / "bench.json")
    assert code == 0, err
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["seconds per picture, alone"] > 0 and json.loads(out) == report
    assert "needs a GPU" in fails("bench", "device", "--device", "cpu")
    assert "sample, train, capture, attention, text, device" in fails("bench", "nonsense")


@pytest.mark.parametrize(("command", "kind"), [("train", TrainConfig), ("train-text", TextConfig)])
def test_every_documented_setting_has_an_option_and_no_other(run, command: str, kind: type) -> None:
    code, out, err = run(command, "--help")
    assert code == 0, err
    listed = set(re.findall(r"^  (--[a-z-]+)", out, re.MULTILINE)) - {"--help", "--resume", "--allow-changes"}
    assert listed == {flag_of(setting) for setting in fields(kind) if setting.metadata}
    assert not {"--warmup", "--begin-from", "--no-flip"} & listed


def test_the_version_is_printed(run) -> None:
    code, out, _ = run("--version")
    assert code == 0 and re.fullmatch(r"unet-xattn \d+\.\d+\.\d+", out.strip())


def test_concepts_are_found_in_an_existing_picture(run, fails, tiny_model: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "mine.png")
    start = ("attribute", tmp_path / "mine.png")
    end = ("--model", tiny_model, "--out", tmp_path / "read")
    code, out, err = run(*start, "", "--concepts", "red ground, sky", "--output-maps", *end)
    assert code == 0 and err == 'note: words unknown to the model: "sky"\n'
    *files, ground, sky = out.splitlines()
    names = ["mine-words.png", "mine.safetensors", "mine-concepts.png", "mine-labels.png"]
    assert [Path(file).name for file in files] == names
    attention = AttentionTrace.load(files[1])
    assert attention.concepts == ("red ground", "sky") and attention.heatmap("sky", reduce="output").shape == (32, 32)
    labels = attention.masks(branch="concepts").numpy()
    with Image.open(files[3]) as written:
        assert (np.asarray(written) == labels + 1).all()
    for number, (name, line) in enumerate([("red ground", ground), ("sky", sky)]):
        area = float((labels == number).mean())
        assert line == f"{number + 1} {name}: " + (f"{area:.1%}" if area else "none")
    assert "already exists" in fails(*start, "", "--concepts", "sky", *end)
    for given, said in (
        (", ,", "--concepts names nothing"),
        ("a star,A  star", "is named twice"),
        ("!", "has no word"),
    ):
        assert said in fails(*start, "", "--concepts", given, "--model", tiny_model, "--out", tmp_path / "none")
    assert "the caption is empty" in fails(*start, "", "--model", tiny_model, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_trace_is_exported_by_other_readings(run, fails, tiny_model: Path, tmp_path: Path) -> None:
    arguments = ("generate", "a red circle", "--model", tiny_model, "--steps", "2", "--out", tmp_path)
    assert "give --keep, too" in fails(*arguments, "--output-maps")
    code, _, err = run(*arguments, "--keep", "step", "--output-maps")
    assert code == 0, err
    kept, written = tmp_path / "a-red-circle-seed0.safetensors", {}
    for reading in ("share", "text", "contrast", "output"):
        code, _, err = run("export", kept, "--reading", reading, "--out", tmp_path / reading)
        assert code == 0, err
        names = ("words.png", "word-02-red.png", "steps.png", "steps.webp")
        written[reading] = [(tmp_path / reading / name).read_bytes() for name in names]
    assert all(len(set(of_file)) == 4 for of_file in zip(*written.values(), strict=True))
    other = ("--out", tmp_path / "none")
    assert "no calibration" in fails("export", kept, "--reading", "calibrated", *other)
    assert "the reading is one of share, text, contrast, calibrated, output, not 'mean'" in fails(
        "export", kept, "--reading", "mean", *other
    )
    assert not (tmp_path / "none").exists()
