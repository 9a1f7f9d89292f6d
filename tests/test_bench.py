import json

import pytest

from pipelines.bench.speed import bench_capture, bench_sample, bench_train


def test_training_report_compares_models_of_about_equal_size_in_one_run() -> None:
    report = bench_train(batch_size=2, repeats=1)
    ours, theirs = report["ours"], report["diffusers UNet2DConditionModel"]
    assert ours["parameters"] == pytest.approx(theirs["parameters"], rel=0.1)
    for figures in (ours, theirs):
        done = figures["pictures/s"] * 3 * figures["GFLOP per picture, forward"]
        assert figures["ratio to the matrix-product rate"] == pytest.approx(done / report["matrix-product GFLOP/s"])
    faster = ours["pictures/s"] / theirs["pictures/s"]
    assert report["times faster than diffusers' step"] == pytest.approx(faster)
    assert json.loads(json.dumps(report)) == report


def test_sampling_report_is_per_picture(tiny_pipe) -> None:
    report = bench_sample(tiny_pipe, repeats=1)
    assert 0 < report["seconds per picture, in a batch of 16"] < report["seconds per picture, alone"]


def test_capture_report_compares_recording_with_not_recording(tiny_pipe, tmp_path) -> None:
    tiny_pipe.save_pretrained(tmp_path / "model")
    report = bench_capture(str(tmp_path / "model"), repeats=2)
    assert report["MiB at the peak, not recorded"] > 100  # the interpreter and the libraries
    for keep in ("mean", "full"):
        assert report[keep]["times the time"] > 0.5
        assert 0.9 < report[keep]["times the memory"] < 1.2
    assert report["edited"]["times the time"] > 1.2  # two pictures
