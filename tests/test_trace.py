"""Shapes: I images, H heads, T tokens, h×w the grid of one layer."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from pipelines import TextToImagePipeline, trace
from unet_xattn import AttentionTrace
from unet_xattn.grounding import measure
from unet_xattn.trace_file import FORMAT, OLDER
from unet_xattn.trace_plan import Recording
from unet_xattn.words import SPECIAL, read_text

PROMPT = "a red circle left of a blue square"
SIZE = (32, 48)
GRIDS = {"coarse": (4, 6), "fine": (8, 12)}
H, T = 2, 10  # start, eight words, end


def random_weights(grid: tuple[int, int], images: int = 1, tokens: int = T) -> Tensor:
    return torch.randn(images, H, grid[0] * grid[1], tokens).softmax(dim=-1)


def recording(
    tokenizer: PreTrainedTokenizerFast, prompts: list[str], negatives: list[str] | None = None, **others: object
) -> Recording:
    texts = {"prompt": prompts} | ({} if negatives is None else {"negative": negatives})
    read = {branch: [read_text(p, tokenizer) for p in given] for branch, given in texts.items()}
    return Recording(
        **({"texts": read, "size": SIZE, "grids": GRIDS, "heads": dict.fromkeys(GRIDS, H), "steps": 3} | others)
    )  # type: ignore


def started(tokenizer: PreTrainedTokenizerFast, keep: str = "mean", **others: object) -> AttentionTrace:
    attention = AttentionTrace(keep)
    attention.start(recording(tokenizer, [PROMPT], [PROMPT], **others))
    return attention


def filled(tokenizer: PreTrainedTokenizerFast, keep: str = "mean", steps: int = 3, **others: object) -> AttentionTrace:
    """The same random attention whatever is kept."""
    torch.manual_seed(0)
    attention = started(tokenizer, keep, **others)
    for step in range(steps):
        record = attention.recorder(step, {"prompt": slice(1, 2), "negative": slice(0, 1)})
        for layer, grid in GRIDS.items():
            record(layer, random_weights(grid, images=2), grid)
    return attention


def planted(tokenizer: PreTrainedTokenizerFast, places: dict[int, tuple[slice, slice]]) -> AttentionTrace:
    """All attention goes to the start token, but at the given places of the coarse grid to the given token."""
    attention = started(tokenizer)
    maps = torch.zeros(1, H, *GRIDS["coarse"], T)
    maps[..., 0] = 1
    for token, (rows, columns) in places.items():
        maps[:, :, rows, columns] = F.one_hot(torch.tensor(token), T).float()
    attention.recorder(0, {"prompt": slice(0, 1)})("coarse", maps.flatten(2, 3), GRIDS["coarse"])
    return attention


# What is kept.


def test_running_sums_are_the_mean_of_the_steps_recorded_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    mean, full = filled(tokenizer), filled(tokenizer, "full")
    for layer in GRIDS:
        apart = [full.maps(layer, step=step, head=head) for step in range(3) for head in range(H)]
        torch.testing.assert_close(mean.maps(layer), torch.stack(apart).mean(dim=0))
        torch.testing.assert_close(full.maps(layer), mean.maps(layer))
    torch.testing.assert_close(full.heatmap("red circle"), mean.heatmap("red circle"))
    assert not torch.allclose(full.maps("fine", step=0), full.maps("fine", step=1))
    assert not torch.allclose(full.maps("fine", head=0), full.maps("fine", head=1))


@pytest.mark.parametrize(("keep", "steps", "heads"), [("step", True, False), ("head", False, True)])
def test_steps_or_heads_alone_can_be_kept_apart(
    tokenizer: PreTrainedTokenizerFast, keep: str, steps: bool, heads: bool
) -> None:
    one, full = filled(tokenizer, keep), filled(tokenizer, "full")
    assert one.steps == ([0, 1, 2] if steps else [])
    if steps:
        torch.testing.assert_close(one.maps("fine", step=1), full.maps("fine", step=1))
        with pytest.raises(ValueError, match="heads were averaged during recording: trace with keep='head'"):
            one.maps("fine", head=0)
    if heads:
        torch.testing.assert_close(one.maps("fine", head=1), full.maps("fine", head=1))
        with pytest.raises(ValueError, match="steps were averaged during recording: trace with keep='step'"):
            one.heatmap("red", step=0)


def held(attention: AttentionTrace) -> int:
    """Numbers an attention trace holds."""
    return sum(total.numel() for total in attention._sums.values())


def test_memory_grows_with_the_steps_only_if_they_are_kept(tokenizer: PreTrainedTokenizerFast) -> None:
    for keep in ("mean", "head"):
        assert held(filled(tokenizer, keep, steps=12)) == held(filled(tokenizer, keep, steps=2))
    assert held(filled(tokenizer, "full", steps=12)) == 6 * held(filled(tokenizer, "full", steps=2))


def test_a_trace_keeps_no_graph_and_not_the_weights_it_was_given(tokenizer: PreTrainedTokenizerFast) -> None:
    attention = started(tokenizer, "full")
    weights = random_weights(GRIDS["fine"]).requires_grad_()
    attention.recorder(0, {"prompt": slice(0, 1)})("fine", weights, GRIDS["fine"])
    before = attention.maps("fine").clone()
    with torch.no_grad():
        weights.zero_()
    assert not attention.maps("fine").requires_grad
    assert torch.equal(attention.maps("fine"), before)


def test_what_can_be_kept_is_named_in_the_error() -> None:
    for keep in ("layers", ["step", "layers"]):
        with pytest.raises(ValueError, match="step, head, 'mean' or 'full', not layers"):
            AttentionTrace(keep)
    assert AttentionTrace(["step", "head"]).keep == AttentionTrace("full").keep


def test_half_precision_weights_are_summed_in_fp32(tokenizer: PreTrainedTokenizerFast) -> None:
    attention = started(tokenizer)
    weights = torch.full((1, H, 24, T), 0.1).half()
    for step in range(1000):
        attention.recorder(step, {"prompt": slice(0, 1)})("coarse", weights, GRIDS["coarse"])
    maps = attention.maps("coarse")
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, torch.full_like(maps, weights[0, 0, 0, 0].item()), rtol=1e-5, atol=0)


def test_starting_again_forgets(tokenizer: PreTrainedTokenizerFast) -> None:
    attention = filled(tokenizer)
    attention.start(recording(tokenizer, ["a star"]))
    with pytest.raises(ValueError, match="nothing has been recorded yet"):
        _ = attention.words
    assert attention.layers == []


@pytest.mark.parametrize("ask", [lambda a: a.words, lambda a: a.heatmap("red"), lambda a: a.words_at((0, 0, 1, 1))])
def test_an_empty_trace_says_how_to_record(ask: object) -> None:
    with pytest.raises(ValueError, match="call the pipeline inside `with trace"):
        ask(AttentionTrace())  # type: ignore[operator]


def test_a_layer_that_did_not_report_is_an_error_not_a_map_of_the_rest(tokenizer: PreTrainedTokenizerFast) -> None:
    pictures = torch.zeros(1, *SIZE, 3, dtype=torch.uint8)
    filled(tokenizer).finish(pictures)
    third = filled(tokenizer)
    third.recorder(0, {"prompt": slice(0, 1)})("third", random_weights(GRIDS["fine"]), GRIDS["fine"])
    with pytest.raises(RuntimeError, match=r"was not recorded.*'third'"):
        third.finish(pictures)
    one = started(tokenizer)
    one.recorder(0, {"prompt": slice(0, 1)})("fine", random_weights(GRIDS["fine"]), GRIDS["fine"])
    for short in (one, started(tokenizer)):
        with pytest.raises(RuntimeError, match=r"was not recorded.*'coarse'"):
            short.finish(pictures)
        assert short.pictures is None


@pytest.mark.parametrize(("keep", "apart"), [("mean", H), ("step", 3), ("head", H), ("full", 3 * H)])
def test_a_recording_beyond_the_budget_is_refused_before_it_begins(
    tokenizer: PreTrainedTokenizerFast, keep: str, apart: int
) -> None:
    known = recording(tokenizer, [PROMPT], [PROMPT])
    size = 4 * 2 * (4 * 6 + 8 * 12) * T * apart
    AttentionTrace(keep, budget=size).start(known)
    with pytest.raises(ValueError, match=r"would take .* MiB, its budget is .* MiB"):
        AttentionTrace(keep, budget=size - 1).start(known)
    attention = filled(tokenizer, keep)
    assert 4 * held(attention) == size  # what it says is what it takes
    before = attention.heatmap("red")
    attention.finish(torch.zeros(1, *SIZE, 3, dtype=torch.uint8))
    assert held(attention) == held(filled(tokenizer, keep)) / (H if keep == "mean" else 1)
    torch.testing.assert_close(attention.heatmap("red"), before)


def test_every_token_has_its_name_padding_too(tokenizer: PreTrainedTokenizerFast) -> None:
    attention = AttentionTrace()
    attention.start(recording(tokenizer, ["a red circle", "a star"]))
    attention.recorder(0, {"prompt": slice(0, 2)})("fine", torch.rand(2, H, 96, 5).softmax(-1), GRIDS["fine"])
    start, *words, end = attention.tokens_of(0)
    assert len(words) == 3
    assert attention.tokens_of(1) == (start, *attention.recording.texts["prompt"][1].tokens[1:-1], end, "[padding]")


# Maps and heat maps.


def test_shares_of_all_tokens_add_up_to_one_at_each_place(tokenizer: PreTrainedTokenizerFast) -> None:
    attention = filled(tokenizer)
    for layer, grid in GRIDS.items():
        assert attention.maps(layer).shape == (T, *grid)
        torch.testing.assert_close(attention.maps(layer).sum(dim=0), torch.ones(grid))
    everything = sum(attention.heatmap(token) for token in range(T))
    torch.testing.assert_close(everything, torch.ones(SIZE))


def test_a_heat_map_is_float32_of_the_pictures_size_between_0_and_1(tokenizer: PreTrainedTokenizerFast) -> None:
    for scale in ("absolute", "peak"):
        heat = filled(tokenizer).heatmap("circle", scale=scale)
        assert heat.dtype == torch.float32
        assert heat.shape == SIZE
        assert 0 <= heat.min() < heat.max() <= 1
    assert heat.max() == 1
    with pytest.raises(ValueError, match="scale is 'absolute' or 'peak', not 'max'"):
        filled(tokenizer).heatmap("circle", scale="max")


def test_a_phrase_is_the_sum_of_its_words(tokenizer: PreTrainedTokenizerFast) -> None:
    attention = filled(tokenizer)
    torch.testing.assert_close(attention.heatmap("red circle"), attention.heatmap("red") + attention.heatmap("circle"))


def test_a_word_is_asked_for_by_text_by_itself_or_by_token(tokenizer: PreTrainedTokenizerFast) -> None:
    attention = filled(tokenizer)
    red = attention.words[1]
    assert (red.text, red.tokens) == ("red", (2,))
    for other in ("RED", red, 2):
        assert torch.equal(attention.heatmap(other), attention.heatmap("red"))
    assert torch.equal(attention.heatmap("a", occurrence=1), attention.heatmap(6))
    assert not torch.equal(attention.heatmap("a"), attention.heatmap("a", occurrence=1))


def test_all_layers_are_averaged_unless_one_is_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    attention = filled(tokenizer)
    both = torch.stack([attention.heatmap("red", layer=layer) for layer in GRIDS]).mean(dim=0)
    torch.testing.assert_close(attention.heatmap("red"), both)
    assert attention.layers == list(GRIDS)


def test_a_heat_map_of_a_grid_as_fine_as_the_picture_is_the_map_itself(tokenizer: PreTrainedTokenizerFast) -> None:
    attention = started(tokenizer, grids={"pixel": SIZE}, heads={"pixel": H})
    attention.recorder(0, {"prompt": slice(0, 1)})("pixel", random_weights(SIZE), SIZE)
    torch.testing.assert_close(attention.heatmap("red"), attention.maps("pixel")[2])


@pytest.mark.parametrize(("drawn", "rows", "columns"), [((32, 96), (0, 32), (24, 72)), ((96, 48), (32, 64), (0, 48))])
def test_of_a_picture_that_is_the_middle_of_what_was_drawn_the_map_is_the_middle_too(
    tokenizer: PreTrainedTokenizerFast, drawn: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    grid = (drawn[0] // 4, drawn[1] // 4)
    attention = started(tokenizer, drawn=drawn, grids={"fine": grid}, heads={"fine": H})
    torch.manual_seed(0)
    attention.recorder(0, {"prompt": slice(0, 1)})("fine", random_weights(grid), grid)
    whole = F.interpolate(attention.maps("fine")[None, 2:3], drawn, mode="bilinear")[0, 0]
    torch.testing.assert_close(attention.heatmap("red"), whole[slice(*rows), slice(*columns)])


def test_the_negative_prompts_attention_is_kept_by_name(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    weights = random_weights(GRIDS["fine"], images=2)
    attention = started(tokenizer)
    attention.recorder(0, {"prompt": slice(0, 1), "negative": slice(1, 2)})("fine", weights, GRIDS["fine"])
    swapped = started(tokenizer)
    swapped.recorder(0, {"prompt": slice(1, 2), "negative": slice(0, 1)})("fine", weights, GRIDS["fine"])
    torch.testing.assert_close(attention.maps("fine"), weights[0].mean(0).T.unflatten(1, GRIDS["fine"]))
    assert torch.equal(attention.maps("fine"), swapped.maps("fine", branch="negative"))
    assert not torch.equal(attention.maps("fine"), attention.maps("fine", branch="negative"))


def test_the_negative_prompt_is_asked_by_its_own_words(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    attention = AttentionTrace()
    attention.start(recording(tokenizer, ["a red circle"], ["star"]))
    weights = random_weights(GRIDS["fine"], images=2)
    attention.recorder(0, {"prompt": slice(0, 1), "negative": slice(1, 2)})("fine", weights, GRIDS["fine"])
    attention.save(tmp_path / "trace.safetensors")
    for asked in (attention, AttentionTrace.load(tmp_path / "trace.safetensors")):
        (star,) = asked.words_of(0, "negative")
        heat = asked.heatmap("star", branch="negative")
        assert torch.equal(heat, asked.heatmap(star.tokens[0], branch="negative"))
        assert asked.words_at((0, 0, 9, 9), branch="negative")[0][0] == star
        with pytest.raises(ValueError, match="'red' is not in the prompt; its words are: star"):
            asked.heatmap("red", branch="negative")


def test_each_picture_of_a_batch_has_its_own_maps(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = [PROMPT, "three small green stars, on a black ground"]
    attention = AttentionTrace()
    attention.start(recording(tokenizer, prompts))
    weights = random_weights(GRIDS["fine"], images=2)
    attention.recorder(0, {"prompt": slice(0, 2)})("fine", weights, GRIDS["fine"])
    for image in range(2):
        expected = weights[image].mean(dim=0).T.unflatten(1, GRIDS["fine"])
        torch.testing.assert_close(attention.maps("fine", image=image), expected)
    assert torch.equal(attention.heatmap("stars", image=1), attention.heatmap(4, image=1))
    assert [word.text for word, _ in attention.words_at((0, 0, 9, 9), image=1)].count("green") == 1
    assert attention.words == attention.words_of(0)
    assert [word.text for word in attention.words_of(1)] == [
        "three",
        "small",
        "green",
        "stars",
        "on",
        "a",
        "black",
        "ground",
    ]
    with pytest.raises(ValueError, match="'stars' is not in the prompt"):
        attention.heatmap("stars", image=0)


# What is read besides words, and what words have in common.


def test_shares_of_the_text_leave_out_start_and_end_but_not_punctuation(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    attention = AttentionTrace()
    described = recording(tokenizer, ["a red circle, on a black ground."])
    attention.start(described)
    count = described.tokens
    weights = random_weights(GRIDS["fine"], tokens=count)
    attention.recorder(0, {"prompt": slice(0, 1)})("fine", weights, GRIDS["fine"])
    everything, text = attention.maps("fine"), attention.maps("fine", of="text")
    assert [attention.tokens_of(0)[i] for i in (0, 4, -2, -1)] == ["[START]", ",", ".", "[END]"]
    assert (text[[0, -1]] == 0).all() and (text[1:-1] > 0).all()
    torch.testing.assert_close(text.sum(dim=0), torch.ones(GRIDS["fine"]))
    torch.testing.assert_close(text[4], everything[4] / everything[1:-1].sum(dim=0))
    assert attention.columns_of() == [SPECIAL]
    torch.testing.assert_close(attention.heatmap(SPECIAL), attention.heatmap(0) + attention.heatmap(count - 1))
    torch.testing.assert_close(attention.dropped(), attention.heatmap(SPECIAL))
    torch.testing.assert_close(attention.dropped(of="text"), attention.dropped())


def test_a_place_where_nothing_of_the_text_is_read_has_no_shares_of_it(tokenizer: PreTrainedTokenizerFast) -> None:
    attention = planted(tokenizer, {2: (slice(0, 2), slice(0, 3))})
    assert attention.dropped()[31, 47] == 1 and attention.dropped()[0, 0] == 0
    text = attention.maps("coarse", of="text")
    assert text.sum(dim=0)[0, 0] == 1 and (text[:, -1, -1] == 0).all()


def with_maps(tokenizer: PreTrainedTokenizerFast, maps: Tensor) -> AttentionTrace:
    """A trace of "a red circle", whose words have these maps, (3, h, w) of the picture's size."""
    attention = AttentionTrace("head")
    heads = {"pixel": 1}
    attention.start(
        recording(tokenizer, ["a red circle"], grids={"pixel": SIZE}, heads=heads, calibration={"pixel": [1.0]})
    )
    rest = (1 - maps.sum(dim=0)) / 2
    weights = torch.stack([rest, *maps, rest])  # start, three words, end
    attention.recorder(0, {"prompt": slice(0, 1)})("pixel", weights.flatten(1).T[None, None], SIZE)
    return attention


def test_words_whose_maps_have_one_form_have_no_contrast_however_large_they_are(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    torch.manual_seed(0)
    form = torch.rand(SIZE)
    attention = with_maps(tokenizer, torch.stack([0.01 * form, 0.1 * form, 0.6 * form]))
    for word in attention.words:
        assert attention.heatmap(word, of="words").max() < 1e-6 < attention.heatmap(word).max()


def test_contrast_shows_what_a_map_has_beyond_the_others(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    form = 0.2 + torch.rand(SIZE) / 2
    maps = torch.stack([0.3 * form, 0.4 * form, 0.002 * form])
    maps[2, 8:16, 8:16] *= 4  # a weak word, which is read nowhere as much as the others
    attention = with_maps(tokenizer, maps)
    share, contrast = attention.heatmap("circle"), attention.heatmap("circle", of="words")
    inside = torch.zeros(SIZE, dtype=torch.bool)
    inside[8:16, 8:16] = True
    assert contrast[inside].min() > 0 == contrast[~inside].max() and (contrast <= share).all()
    mean = [heat.mean() for heat in maps]
    common = sum(heat / m for heat, m in zip(maps, mean, strict=True)) / 3
    torch.testing.assert_close(contrast, (maps[2] - mean[2] * common).clamp_min(0))
    torch.testing.assert_close(attention.heatmap("circle", of="words", reduce="calibrated"), contrast)
    red, phrase = (attention.heatmaps(tokens, of="words").sum(dim=0) for tokens in ([2], [2, 3]))
    torch.testing.assert_close(attention.heatmap("red circle", of="words"), phrase.clamp_min(0))
    assert red.min() < 0 and attention.heatmap("red", of="words").min() == 0
    with pytest.raises(ValueError, match="of is 'all', 'text' or 'words', not 'contrast'"):
        attention.heatmap("red", of="contrast")


def test_a_text_without_words_has_nothing_in_common(tokenizer: PreTrainedTokenizerFast) -> None:
    attention = AttentionTrace()
    attention.start(recording(tokenizer, [""]))
    attention.recorder(0, {"prompt": slice(0, 1)})("fine", random_weights(GRIDS["fine"], tokens=2), GRIDS["fine"])
    assert torch.equal(attention.heatmap(0, of="words"), attention.heatmap(0))
    assert (attention.maps("fine", of="text") == 0).all() and (attention.segmentation() == -1).all()
    torch.testing.assert_close(attention.dropped(), torch.ones(SIZE))


# From a region to its words.


def test_the_word_that_was_planted_in_a_region_is_found_there(tokenizer: PreTrainedTokenizerFast) -> None:
    # "red" (2) top left, "square" (8) bottom right, in cells of 8×8 pixels
    attention = planted(tokenizer, {2: (slice(0, 2), slice(0, 3)), 8: (slice(2, 4), slice(3, 6))})
    (first, share), (_, second) = attention.words_at((4, 0, 20, 12))[:2]
    assert first.text == "red" and share == pytest.approx(1) and second == pytest.approx(0)
    assert attention.words_at((40, 24, 48, 32))[0][0].text == "square"
    assert [share for _, share in attention.words_at((40, 0, 48, 8))] == [0.0] * 8  # only the start token is there
    ((_, share), *_) = attention.words_at((0, 0, 48, 32))
    assert share == pytest.approx(1 / 4, abs=0.02)


def test_shares_of_a_region_are_ranked_and_leave_the_rest_to_the_other_tokens(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    attention = filled(tokenizer, "full")
    ranked = attention.words_at((3, 5, 30, 20), layer="fine", step=1, head=0)
    shares = [share for _, share in ranked]
    assert shares == sorted(shares, reverse=True)
    assert sorted(word.start for word, _ in ranked) == [word.start for word in attention.words]
    rest = sum(attention.heatmap(t, layer="fine", step=1, head=0)[5:20, 3:30].mean() for t in (0, T - 1))
    assert sum(shares) + float(rest) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("region", [(0, 0, 49, 32), (0, 0, 48, 33), (-1, 0, 4, 4), (5, 5, 5, 9), (9, 9, 3, 12)])
def test_a_region_outside_the_picture_or_empty_is_refused(
    tokenizer: PreTrainedTokenizerFast, region: tuple[int, int, int, int]
) -> None:
    said = f"region {region} is not a box (x0, y0, x1, y1) inside the picture, 48×32"
    with pytest.raises(ValueError, match=re.escape(said)):
        filled(tokenizer).words_at(region)


def test_a_region_is_a_box_a_point_or_a_mask(tokenizer: PreTrainedTokenizerFast) -> None:
    attention = filled(tokenizer)
    box = attention.words_at((8, 4, 9, 5))
    assert attention.words_at((8, 4)) == box
    mask = torch.zeros(SIZE)
    mask[4, 8] = 1
    assert attention.words_at(mask) == box
    mask[20, 30] = 0.5  # counts half
    (word, share), *_ = attention.words_at(mask)
    heat = attention.heatmap(word)
    assert share == pytest.approx(float(heat[4, 8] + heat[20, 30] / 2) / 1.5, rel=1e-5)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ((48, 3), r"is not a point \(x, y\) inside the picture"),
        ((3, -1), r"is not a point \(x, y\) inside the picture"),
        (torch.zeros(48, 32), r"the mask is \(48, 32\), the picture \(32, 48\)"),
        (torch.zeros(SIZE), "at least one of them above 0"),
        (torch.full(SIZE, 2.0), "from 0 to 1"),
        (torch.full(SIZE, float("nan")), "from 0 to 1"),
    ],
    ids=str,
)
def test_a_point_or_mask_that_is_none_is_refused(
    tokenizer: PreTrainedTokenizerFast, region: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        filled(tokenizer).words_at(region)


# How far each head can be trusted.


def test_a_calibrated_map_is_the_weighted_mean_of_heads(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    attention = filled(tokenizer, "head", calibration={"fine": [0.0, 0.7], "coarse": [0.2, 0.0]})
    expected = 0.7 / 0.9 * attention.heatmap("red", layer="fine", head=1)  # weights count relative to their sum
    expected += 0.2 / 0.9 * attention.heatmap("red", layer="coarse", head=0)
    found = attention.heatmap("red", reduce="calibrated")
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, attention.heatmap("red"))
    for asked in ({"layer": "fine"}, {"head": 1}):  # a layer or head that is asked for is what was asked for
        assert torch.equal(attention.heatmap("red", reduce="calibrated", **asked), attention.heatmap("red", **asked))
    attention.save(tmp_path / "trace.safetensors")
    loaded = AttentionTrace.load(tmp_path / "trace.safetensors")
    torch.testing.assert_close(loaded.heatmap("red", reduce="calibrated"), found, atol=1e-3, rtol=1e-2)


def test_a_calibrated_map_takes_a_calibration_and_heads_kept_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="has no calibration: `unet-xattn calibrate`"):
        filled(tokenizer, "head").heatmap("red", reduce="calibrated")
    averaged = filled(tokenizer, calibration={"fine": [1.0, 1.0]})
    with pytest.raises(ValueError, match="keep='head'"):
        averaged.heatmap("red", reduce="calibrated")
    with pytest.raises(ValueError, match="reduce is 'mean', 'calibrated' or 'output', not 'sum'"):
        averaged.heatmap("red", reduce="sum")


# Words as a whole.


def test_each_place_belongs_to_the_word_that_was_planted_there_and_the_rest_to_none(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    attention = planted(tokenizer, {2: (slice(0, 2), slice(0, 3)), 8: (slice(2, 4), slice(3, 6))})
    owners = attention.segmentation()
    names = [word.text for word in attention.words]
    assert owners.shape == SIZE and owners.dtype == torch.int64
    assert (owners[1:12, 1:20] == names.index("red")).all()
    assert (owners[20:, 28:] == names.index("square")).all()
    assert (owners[20:, :20] == -1).all() and (owners[:12, 28:] == -1).all()


def test_the_numbers_of_a_word_are_those_of_its_place(tokenizer: PreTrainedTokenizerFast) -> None:
    attention = planted(tokenizer, {2: (slice(0, 2), slice(0, 3)), 8: (slice(3, 4), slice(5, 6))})
    red, square, nowhere = (attention.measure(word) for word in ("red", "square", "left"))
    assert red.mass == pytest.approx(1 / 4, abs=0.02) and red.area == pytest.approx(1 / 4, abs=0.02)
    assert red.centre == pytest.approx((12, 8), abs=1)
    assert square.centre == pytest.approx((44, 28), abs=1) and square.area < red.area
    assert 0 < square.entropy < red.entropy < 1
    assert nowhere.mass == 0
    even = measure(torch.ones(8, 4))
    assert even.entropy == pytest.approx(1) and even.area == 1 and even.centre == (2, 4)


def test_words_that_landed_apart_leak_nothing_and_those_in_one_place_all(tokenizer: PreTrainedTokenizerFast) -> None:
    attention = planted(tokenizer, {2: (slice(0, 2), slice(0, 2)), 8: (slice(2, 4), slice(4, 6))})
    names = [word.text for word in attention.words]
    leakage = attention.leakage()
    assert leakage.shape == (len(names), len(names)) and torch.allclose(leakage, leakage.T)
    red, square = names.index("red"), names.index("square")
    assert leakage[red, red] == pytest.approx(1) and leakage[red, square] == pytest.approx(0, abs=1e-6)
    mixed = filled(tokenizer).leakage()
    assert (mixed > 0).all() and (mixed <= 1 + 1e-5).all()


def test_the_spread_over_pictures_is_of_those_whose_prompt_says_the_word(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = ["a red circle", "a blue square", "a red square"]
    attention = AttentionTrace()
    attention.start(recording(tokenizer, prompts))
    record = attention.recorder(0, {"prompt": slice(0, 3)})
    torch.manual_seed(0)
    record("fine", random_weights(GRIDS["fine"], images=3), GRIDS["fine"])
    mean, deviation = attention.spread("red")
    maps = torch.stack([attention.heatmap("red", image=i) for i in (0, 2)])
    torch.testing.assert_close(mean, maps.mean(dim=0))
    torch.testing.assert_close(deviation, maps.std(dim=0))
    with pytest.raises(ValueError, match="1 of 3 prompts have 'circle'"):
        attention.spread("circle")


# Asking for what is not there.


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"layer": "other"}, "nothing was recorded for layer 'other'.*layers: coarse, fine"),
        ({"layer": "fine", "step": 7}, r"layer 'fine' at step 7.*steps: \[0, 1, 2\]"),
        ({"step": -1}, "at step -1"),
        ({"head": 2}, "has heads 0 to 1, not 2"),
        ({"head": -1}, "has heads 0 to 1, not -1"),
        ({"branch": "positive"}, "branch 'positive' was not recorded; recorded: negative, prompt"),
        ({"image": 1}, "image 1 does not exist: 1 image"),
        ({"image": -1}, "image -1 does not exist"),
        ({"refine": "edge"}, "refine is 'none' or 'edges', not 'edge'"),
        ({"scale": "max"}, "scale is 'absolute' or 'peak', not 'max'"),
        ({"reduce": np.array([])}, "reduce is 'mean', 'calibrated' or 'output', not"),
    ],
)
def test_what_was_not_recorded_is_said_with_what_was(
    tokenizer: PreTrainedTokenizerFast, question: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        filled(tokenizer, "full").heatmap("red", **question)


def test_words_at_of_a_picture_that_is_not_there_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="image 1 does not exist"):
        filled(tokenizer).words_at((0, 0, 4, 4), image=1)


@pytest.mark.parametrize("token", [-1, T])
def test_a_token_that_is_not_there_is_refused(tokenizer: PreTrainedTokenizerFast, token: int) -> None:
    with pytest.raises(ValueError, match=rf"token {token} does not exist: the prompt has tokens 0 to {T - 1}"):
        filled(tokenizer).heatmap(token)


def test_a_word_that_is_not_there_is_answered_with_those_that_are(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="'green' is not in the prompt; its words are: a, red, circle, left"):
        filled(tokenizer).heatmap("green")


# On disk.


@pytest.mark.parametrize("keep", ["mean", "step", "head", "full"])
def test_a_saved_trace_answers_as_it_did(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, keep: str) -> None:
    attention = filled(tokenizer, keep)
    attention.finish(torch.randint(256, (1, 3, *SIZE), dtype=torch.uint8).movedim(1, -1))  # as a pipeline may give them
    attention.save(tmp_path / "attention.safetensors")
    saved = load_file(tmp_path / "attention.safetensors")
    assert {tensor.dtype for name, tensor in saved.items() if name != "pictures"} == {torch.float16}
    loaded = AttentionTrace.load(tmp_path / "attention.safetensors")
    assert loaded.recording == attention.recording
    assert torch.equal(loaded.pictures, attention.pictures)
    assert loaded.words == attention.words
    assert loaded.prompts == attention.prompts and loaded.size == attention.size
    assert loaded.layers == attention.layers == list(GRIDS)
    assert loaded.steps == attention.steps and loaded.keep == attention.keep
    half = {"rtol": 0, "atol": 2**-11}
    for branch in ("prompt", "negative"):
        torch.testing.assert_close(
            loaded.heatmap("red circle", branch=branch), attention.heatmap("red circle", branch=branch), **half
        )
    if keep == "full":
        torch.testing.assert_close(loaded.maps("fine", step=1, head=1), attention.maps("fine", step=1, head=1), **half)


def test_layers_come_back_in_the_order_they_ran(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    attention = AttentionTrace()
    names = ["z", "down.10", "down.2", "mid", "a"]
    attention.start(
        recording(tokenizer, [PROMPT], grids=dict.fromkeys(names, GRIDS["coarse"]), heads=dict.fromkeys(names, H))
    )
    record = attention.recorder(0, {"prompt": slice(0, 1)})
    for name in names:
        record(name, random_weights(GRIDS["coarse"]), GRIDS["coarse"])
    attention.save(tmp_path / "attention.safetensors")
    assert AttentionTrace.load(tmp_path / "attention.safetensors").layers == names


def test_words_in_any_script_survive_the_disk(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    prompt = 'a "red" 红 café\n'
    attention = AttentionTrace()
    attention.start(recording(tokenizer, [prompt]))
    weights = random_weights(GRIDS["coarse"], tokens=attention._recording.tokens)
    attention.recorder(0, {"prompt": slice(0, 1)})("coarse", weights, GRIDS["coarse"])
    attention.save(tmp_path / "attention.safetensors")
    loaded = AttentionTrace.load(tmp_path / "attention.safetensors")
    assert loaded.prompts == [prompt] and loaded.words == attention.words


@pytest.mark.parametrize("length", [0, 4, 60, 0.5, 0.99])
def test_a_file_cut_short_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, length: float) -> None:
    path = tmp_path / "attention.safetensors"
    filled(tokenizer).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(length if length >= 1 else length * len(whole))])
    with pytest.raises(ValueError, match=r"attention\.safetensors cannot be read as safetensors.*is it complete"):
        AttentionTrace.load(path)


@pytest.mark.parametrize(
    "metadata", [None, {"format": "pt"}, {"format": "unet_xattn attention 99", "trace": json.dumps({})}]
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors", metadata)
    with pytest.raises(ValueError, match=r"model\.safetensors.*expected 'unet_xattn attention 5'"):
        AttentionTrace.load(tmp_path / "model.safetensors")


SPOILT: list[Callable[[dict], Any]] = [
    lambda header: header.clear(),
    lambda header: header["recording"].pop("texts"),
    lambda header: header["recording"]["texts"].pop("prompt"),
    lambda header: header["recording"]["texts"].update(negative=[]),
    lambda header: header["recording"]["texts"]["prompt"][0].update(text="another prompt, as long as this one"),
    lambda header: header["recording"]["texts"]["prompt"][0]["words"][0].update(tokens=[99]),
    lambda header: header["recording"]["texts"]["prompt"][0]["words"][0].update(start=-3),
    lambda header: header["recording"]["texts"]["prompt"][0].update(tokens=["a"] * 99),
    lambda header: header["recording"]["texts"]["prompt"][0].update(special=[99]),
    lambda header: header["recording"]["texts"]["prompt"][0].pop("special"),
    lambda header: header["recording"].update(size=[32, 10**9]),
    lambda header: header["recording"].update(size=[48, 32]),
    lambda header: header["recording"].update(size=32),
    lambda header: header["recording"]["grids"].update(fine=[8, 8]),
    lambda header: header["recording"].update(heads=3),
    lambda header: header["recording"].update(steps=None),
    lambda header: header["recording"].update(settings=[]),
    lambda header: header["recording"].update(calibration={"fine": [0.5]}),
    lambda header: header["recording"].update(calibration={"fine": ["a", "b"]}),
    lambda header: header["recording"].update(more=1),
    lambda header: header.update(keep=["layers"]),
    lambda header: header.update(counts={}),
    lambda header: header.update(output=True),  # it has none
    lambda header: header.pop("output"),
    lambda header: header["counts"].update({"prompt|0|fine": 0}),
    lambda header: header["counts"].update({"prompt|0|fine": "1"}),
    lambda header: header["counts"].update({"prompt|0|fine": 1e-290}),  # 0 in fp32: its mean would be NaN
    lambda header: header["counts"].update({"prompt|x|fine": 1}),
    lambda header: header["counts"].update({"prompt|0|other": 1}),
]


@pytest.fixture
def saved(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """A saved trace: its file, its tensors, and its header."""
    attention, path = filled(tokenizer, "full"), tmp_path / "attention.safetensors"
    attention.finish(torch.zeros(1, *SIZE, 3, dtype=torch.uint8))
    attention.save(path)
    with safe_open(path, framework="pt") as file:
        return path, {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["trace"])  # noqa: SIM118


def assert_damaged(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    save_file(tensors, path, {"format": FORMAT, "trace": json.dumps(header)})
    with pytest.raises(ValueError, match=r"^[^\n]*attention\.safetensors is damaged: [^\n]{10,200}$"):
        AttentionTrace.load(path)


@pytest.mark.parametrize("spoil", SPOILT, ids=range(len(SPOILT)))
def test_a_header_that_does_not_fit_is_refused_in_one_line(saved: Any, spoil: Callable[[dict], Any]) -> None:
    path, tensors, header = saved
    spoil(header)
    assert_damaged(path, tensors, header)


@pytest.mark.parametrize("wrong", [float("nan"), -0.1, 3.0])
def test_a_map_whose_shares_are_none_is_refused(saved: Any, wrong: float) -> None:
    path, tensors, header = saved
    tensors["prompt|1|fine"][0, 1, 2, 3] = wrong
    assert_damaged(path, tensors, header)


def test_maps_and_pictures_of_other_shapes_are_refused(saved: Any) -> None:
    path, tensors, header = saved
    maps, pictures = tensors["prompt|0|fine"], tensors["pictures"]
    for name, other in (
        ("prompt|0|fine", maps[..., :-1].contiguous()),
        ("prompt|0|fine", maps[:, :, :-1].contiguous()),
        ("prompt|0|fine", maps.mean(dim=1, keepdim=True)),  # of fewer heads than the others
        ("pictures", pictures[:, 1:].contiguous()),
        ("pictures", pictures.float()),
    ):
        assert_damaged(path, tensors | {name: other}, header)


def test_a_word_without_tokens_was_cut_off(saved: Any) -> None:
    path, tensors, header = saved
    header["recording"]["texts"]["prompt"][0]["words"][1]["tokens"] = []
    save_file(tensors, path, {"format": FORMAT, "trace": json.dumps(header)})
    attention = AttentionTrace.load(path)
    assert "red" not in map(str, attention.words) and [str(word) for word in attention.cut_off()] == ["red"]
    for red in ("red", *attention.cut_off()):
        with pytest.raises(ValueError, match="'red' was cut off or left out"):
            attention.heatmap(red)


@pytest.mark.parametrize("form", OLDER)
def test_a_file_of_an_older_format_is_read(saved: Any, form: str) -> None:
    path, tensors, header = saved
    before = AttentionTrace.load(path)
    for text in (text for texts in header["recording"]["texts"].values() for text in texts):
        del text["special"]  # start and end are found by not being words
    if form == OLDER[-1]:
        header["recording"]["heads"] = next(iter(header["recording"]["heads"].values()))
        del header["recording"]["drawn"]
    save_file(tensors, path, {"format": form, "trace": json.dumps(header)})
    assert AttentionTrace.load(path).recording == before.recording


def test_an_empty_trace_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing has been recorded yet"):
        AttentionTrace().save(tmp_path / "attention.safetensors")
    assert list(tmp_path.iterdir()) == []


# With the real thing.


def test_the_conditional_branch_of_a_guided_picture_is_recorded_not_the_other_half(
    tiny_pipe: TextToImagePipeline,
) -> None:
    def draw(**kwargs: object) -> AttentionTrace:
        with trace(tiny_pipe) as attention:
            tiny_pipe(PROMPT, num_inference_steps=1, generator=torch.Generator().manual_seed(0), **kwargs)
        return attention

    guided, plain = draw(guidance_scale=3.0), draw(guidance_scale=1.0)
    assert guided.layers == plain.layers == tiny_pipe.unet.attention_layers
    for layer in guided.layers:
        # In the first step both look at the same noise.
        torch.testing.assert_close(guided.maps(layer), plain.maps(layer), rtol=1e-3, atol=1e-4)
        negative = guided.maps(layer, branch="negative")
        assert (negative - guided.maps(layer)).abs().max() > 0.01
        assert (negative[2:] == 0).all()  # the empty prompt is a start and an end
    with pytest.raises(ValueError, match="recorded: prompt"):
        plain.heatmap("red", branch="negative")
