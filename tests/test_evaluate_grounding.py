import json
from pathlib import Path

import pytest
import torch

from pipelines import trace
from pipelines.evaluation.calibration import calibrate
from pipelines.evaluation.grounding import LEVELS, PARTS, draw_and_locate, evaluate_grounding, grounding_table, read
from pipelines.evaluation.hard_scenes import HARDNESSES
from pipelines.evaluation.maps import FIGURES, METHODS, Reading, daam, judge_map, summary
from pipelines.scenes.shapes import render, scene
from pipelines.text_to_image import TextToImagePipeline
from ui.commands.measure import calibrate_model
from unet_xattn import AttentionTrace


def test_every_word_with_a_region_is_read_with_its_mask(tiny_pipe: TextToImagePipeline) -> None:
    described = scene(0, 1, kind="relation")
    reading, words = read(tiny_pipe, described)
    masks = {kind: mask for kind, _, mask in words}
    assert {"shape", "colour", "relation"} <= set(masks)
    assert (masks["relation"] >= masks["shape"]).all() and masks["relation"].sum() > masks["shape"].sum()
    for _, word, mask in words:
        assert described.caption[word.start : word.end] == word.text and word.tokens
        assert mask.shape == reading.attention.size and 0.5 <= mask.max() <= 1


def test_a_map_equal_to_its_mask_is_perfect_by_every_figure() -> None:
    mask = torch.zeros(16, 16)
    mask[2:6, 3:9] = 1
    assert judge_map(mask, mask) == [1, 1, 1, 1]
    assert judge_map(1 - mask, mask)[:3] == [0, 0, 0]


def test_calibration_finds_the_head_whose_maps_are_the_masks(
    tiny_pipe: TextToImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = tiny_pipe.unet.attention_layers[-1]
    truth: dict[tuple[int, ...], torch.Tensor] = {}

    def read_with_truth(pipe: TextToImagePipeline, described: object) -> tuple[Reading, list]:
        reading, words = read(pipe, described)
        truth.clear()
        truth.update({word.tokens: mask for _, word, mask in words})
        return reading, words

    heatmap = AttentionTrace.heatmap

    def planted(self: AttentionTrace, word, **which):
        if (which.get("layer"), which.get("head")) == (layer, 1):
            return 0.5 * truth[word.tokens]
        return heatmap(self, word, **which)

    monkeypatch.setattr("pipelines.evaluation.calibration.read", read_with_truth)
    monkeypatch.setattr(AttentionTrace, "heatmap", planted)
    found = calibrate(tiny_pipe, scenes=6)
    weights = [w for row in found.values() for w in row]
    assert min(weights) >= 0 and sum(weights) == pytest.approx(1, abs=1e-3)
    assert found[layer][1] == max(weights) > 0.5


def test_a_calibration_is_saved_with_the_model(tiny_pipe: TextToImagePipeline, tmp_path: Path) -> None:
    tiny_pipe.save_pretrained(tmp_path / "model")
    assert TextToImagePipeline.from_pretrained(tmp_path / "model").config.calibration is None
    calibrate_model(str(tmp_path / "model"), scenes=3)
    pipe = TextToImagePipeline.from_pretrained(tmp_path / "model")
    assert pipe.config.calibration == calibrate(tiny_pipe, scenes=3)
    with trace(pipe, keep="head") as attention:
        pipe("a red circle", num_inference_steps=2)
    assert attention.heatmap("circle", reduce="calibrated").shape == attention.size
    with pytest.raises(ValueError, match="is not the folder of a model"):
        calibrate_model(str(tmp_path))


def test_daams_rule_is_the_mean_except_for_the_interpolation(tiny_pipe: TextToImagePipeline) -> None:
    reading, ((_, word, _), *_) = read(tiny_pipe, scene(0, 1))
    attention = reading.attention
    total = daam(reading, word) / len(attention.layers)
    assert total.shape == attention.size
    both = torch.stack([total, attention.heatmap(word)]).flatten(1)
    assert torch.corrcoef(both)[0, 1] > 0.95
    torch.testing.assert_close(both[0].mean(), both[1].mean(), rtol=0.02, atol=0)
    assert not torch.equal(total, attention.heatmap(word))


def test_the_report_has_every_method_class_and_layer(tiny_pipe: TextToImagePipeline) -> None:
    layers = tiny_pipe.unet.attention_layers
    even = {layer: [0.1, 0.1] for layer in layers}
    pipe = TextToImagePipeline(**tiny_pipe.components, calibration=even)
    report = json.loads(json.dumps(evaluate_grounding(pipe, 1)))
    for methods in (report["renders"], *report["hard"].values()):
        assert set(methods) == {*METHODS, "chance"}
    assert set(report["hard"]) == set(HARDNESSES) and {*PARTS} <= set(report)
    assert set(report["layers"]) == set(layers) and len(report["heads"]) == 2 * len(layers)
    assert set(report["levels"]) == {f"noise {level}" for level in LEVELS}
    for classes in report["renders"].values():
        assert {"shape", "colour", "ground", "relation", "object words"} <= set(classes) <= {
            "shape", "colour", "size", "ground", "count", "relation", "object words"
        }  # fmt: skip
        for figures in classes.values():
            for name in FIGURES:
                mean, low, high = figures[name]
                assert 0 <= low <= mean + 1e-9 and mean <= high + 1e-9 and high <= 1 + 1e-9
    # With equal weights the calibrated map is the mean.
    for label, figures in report["renders"]["calibrated"].items():
        for name in FIGURES:
            assert figures[name][0] == pytest.approx(report["renders"]["mean"][label][name][0], abs=0.02)
    lines = grounding_table(report).splitlines()
    assert all(any(layer in line for line in lines) for layer in layers[:8])
    assert all(len(line) <= 120 for line in lines)


def test_intervals_contain_the_mean_and_narrow_with_more_words() -> None:
    torch.manual_seed(0)
    rows = torch.rand(400, 4)
    rows[:, 0] = (rows[:, 0] > 0.3).float()
    few, many = summary(rows[:40].tolist()), summary(rows.tolist())
    for name in FIGURES:
        assert few[name][1] < few[name][0] < few[name][2]
        assert many[name][2] - many[name][1] < few[name][2] - few[name][1]


def test_only_words_of_correctly_drawn_objects_are_judged(tiny_pipe: TextToImagePipeline) -> None:
    described = scene(0, 3, kind="two")
    true = torch.from_numpy(render(described, 32)[0])[None]

    class Painter(TextToImagePipeline):
        """Draws the exact scene with seed 0, and a black picture with any other seed."""

        def __call__(self, prompt, generator, **settings):
            answer = super().__call__(prompt, num_inference_steps=1, generator=generator, **settings)
            self._open_trace().pictures = true if generator.initial_seed() == 0 else torch.zeros_like(true)
            return answer

    painter = Painter(**tiny_pipe.components)
    _, *drawn = draw_and_locate(painter, described, 0)
    _, expected = read(tiny_pipe, described)
    for words in drawn:
        assert [(kind, word) for kind, word, _ in words] == [(kind, word) for kind, word, _ in expected]
        for (_, _, found), (_, _, mask) in zip(words, expected, strict=True):
            assert (found - mask).abs().mean() < 0.05
    assert draw_and_locate(painter, described, 1)[1:] == ([], [])
