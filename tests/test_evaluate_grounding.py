import json
from pathlib import Path

import pytest
import torch

from pipelines.evaluate_grounding import (
    FIGURES,
    Calibration,
    calibrate,
    daam,
    evaluate_grounding,
    judge_map,
    read,
    summary,
    table,
)
from pipelines.scenes import scene
from pipelines.text_to_image import TextToImagePipeline
from unet_xattn import AttentionTrace


def test_a_scene_is_read_with_a_word_and_its_mask_for_all_that_has_a_place(tiny_pipe: TextToImagePipeline) -> None:
    described = scene(0, 1, kind="relation")
    attention, words = read(tiny_pipe, described)
    assert {"shape", "colour"} <= {kind for kind, _, _ in words} and "relation" not in {kind for kind, _, _ in words}
    for _, word, mask in words:
        assert described.caption[word.start : word.end] == word.text and word.tokens
        assert mask.shape == attention.size and 0.5 <= mask.max() <= 1


def test_a_map_that_is_its_mask_is_right_by_every_figure() -> None:
    mask = torch.zeros(16, 16)
    mask[2:6, 3:9] = 1
    assert judge_map(mask, mask) == [1, 1, 1, 1]
    assert judge_map(1 - mask, mask)[:3] == [0, 0, 0]


def test_calibration_finds_the_head_that_tells_the_truth(
    tiny_pipe: TextToImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = tiny_pipe.unet.attention_layers[-1]
    truth: dict[tuple[int, ...], torch.Tensor] = {}

    def read_with_truth(pipe: TextToImagePipeline, described: object) -> tuple[AttentionTrace, list]:
        attention, words = read(pipe, described)
        truth.clear()
        truth.update({word.tokens: mask for _, word, mask in words})
        return attention, words

    heatmap = AttentionTrace.heatmap

    def planted(self: AttentionTrace, word, **which):
        if (which.get("layer"), which.get("head")) == (layer, 1):
            return 0.5 * truth[word.tokens]
        return heatmap(self, word, **which)

    monkeypatch.setattr("pipelines.evaluate_grounding.read", read_with_truth)
    monkeypatch.setattr(AttentionTrace, "heatmap", planted)
    found = calibrate(tiny_pipe, scenes=6)
    assert found.weights[layer][1] == pytest.approx(2, rel=0.01)
    rest = sum(sum(weights) for weights in found.weights.values()) - found.weights[layer][1]
    assert rest < 0.05 and all(w >= 0 for weights in found.weights.values() for w in weights)


def test_a_calibration_comes_back_from_disk_and_adds_maps_up(tiny_pipe: TextToImagePipeline, tmp_path: Path) -> None:
    first, second = tiny_pipe.unet.attention_layers[:2]
    calibration = Calibration({first: [0.0, 2.0], second: [0.5, 0.0]})
    calibration.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == calibration
    attention, ((_, word, _), *_) = read(tiny_pipe, scene(0, 1))
    expected = 2 * attention.heatmap(word, layer=first, head=1) + 0.5 * attention.heatmap(word, layer=second, head=0)
    torch.testing.assert_close(calibration.combine(attention, word), expected)


def test_daams_rule_is_the_plain_mean_but_for_how_maps_are_enlarged(tiny_pipe: TextToImagePipeline) -> None:
    attention, ((_, word, _), *_) = read(tiny_pipe, scene(0, 1))
    total = daam(attention, word) / len(attention.layers)
    assert total.shape == attention.size
    torch.testing.assert_close(total, attention.heatmap(word), atol=0.05, rtol=0.5)
    assert not torch.equal(total, attention.heatmap(word))


def test_the_report_has_every_method_class_and_layer(tiny_pipe: TextToImagePipeline) -> None:
    layers = tiny_pipe.unet.attention_layers
    even = Calibration({layer: [1.0, 1.0] for layer in layers})
    report = json.loads(json.dumps(evaluate_grounding(tiny_pipe, 1, even)))
    assert set(report["methods"]) == {"mean", "DAAM's rule", "calibrated", "chance"}
    assert set(report["layers"]) == set(layers)
    for classes in report["methods"].values():
        assert {"shape", "colour", "ground", "object words"} <= set(classes) <= {
            "shape", "colour", "size", "ground", "count", "object words"
        }  # fmt: skip
        for figures in classes.values():
            for name in FIGURES:
                mean, low, high = figures[name]
                assert 0 <= low <= mean + 1e-9 and mean <= high + 1e-9 and high <= 1 + 1e-9
    # Twice the mean of all heads, so all figures are those of the mean.
    for label, figures in report["methods"]["calibrated"].items():
        for name in FIGURES:
            assert figures[name][0] == pytest.approx(report["methods"]["mean"][label][name][0], abs=0.02)
    lines = table(report).splitlines()
    assert all(any(layer in line for line in lines) for layer in layers)
    assert all(len(line) <= 120 for line in lines)


def test_intervals_hold_the_mean_and_narrow_with_more_words() -> None:
    torch.manual_seed(0)
    rows = torch.rand(400, 4)
    rows[:, 0] = (rows[:, 0] > 0.3).float()
    few, many = summary(rows[:40].tolist()), summary(rows.tolist())
    for name in FIGURES:
        assert few[name][1] < few[name][0] < few[name][2]
        assert many[name][2] - many[name][1] < few[name][2] - few[name][1]
