"""Concepts: what was not said, read beside a prompt and never written.

Shapes: B rows of the batch, H heads, L queries, S keys, E width of a head, T tokens, N positions, h×w a grid or pixels.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families_of_pipelines import all_of, explicit_softmax, outputs_of, state_of
from PIL import Image
from tiny_pipelines import pipeline
from torch import Tensor

from pipelines import TextToImagePipeline, attribute, trace
from pipelines.tracing.concepts import unwritten
from pipelines.tracing.families import LAYOUTS, Place
from pipelines.tracing.kernels import FUSED, Fused
from unet_xattn import AttentionTrace
from unet_xattn.trace import LEAST
from unet_xattn.trace_plan import Recording
from unet_xattn.words import CONCEPTS, OTHER, PADDING, PICTURE, SPECIAL, Text, Word, beside

PROMPT = "a red circle left of a blue square"
NAMES = ["sky", "green grass"]
CLOSE = {"rtol": 0, "atol": 2e-6}

CROSS = ["sd", "sdxl", "pixart_sigma", "sana", "prx"]
CROSS += ["sd_controlnet_guess", "sd_pag", "sd_ip_adapter", "sd_fused"]
JOINT = ["sd3", "sd3_skip_layer", "cogview3plus", "cogview4", "qwenimage"]
SINGLE = [
    "flux",
    "flux_kontext",
    "flux_controlnet",
    "flux_true_cfg",
    "flux2_klein",
    "chroma",
    "ovis",
    "bria",
    "longcat",
]
SINGLE += ["auraflow", "ernie"]
REFUSED = ["hunyuandit", "lumina", "kandinsky3", "kandinsky5", "hunyuanimage"]
REFUSED += ["lumina2", "z_image", "krea2", "glm_image"]


def draw(name: str, prompt: str | list[str] = PROMPT, **changes: Any) -> np.ndarray:
    return all_of(name).draw(pipeline(name), prompt, **changes)


def traced(name: str, prompt: str = PROMPT, concepts: list[str] = NAMES, keep: str = "full") -> AttentionTrace:
    with trace(pipeline(name), keep, concepts=concepts) as attention:
        draw(name, prompt)
    return attention


def each_map(attention: AttentionTrace, branch: str) -> Iterator[Tensor]:
    """The maps of each layer, step and head, (T, h, w)."""
    for layer in attention.layers:
        for step in attention.steps:
            for head in range(attention.recording.heads[layer]):
                yield attention.maps(layer, step=step, head=head, branch=branch)


def assert_beside_the_same_text(attention: AttentionTrace) -> None:
    """Check that all but the concepts has the share that it has without them, times what they leave.

    A softmax over more keys leaves the ratios of the others as they are. So in every layer, head and step this holds if
    nothing there was changed by a concept that was read before.
    """
    prompt, concepts = (attention.recording.texts[branch][0] for branch in ("prompt", CONCEPTS))
    count = sum(len(word.tokens) for word in concepts.words)
    for alone, both in zip(each_map(attention, "prompt"), each_map(attention, CONCEPTS), strict=True):
        left = 1 - both[:count].sum(dim=0)
        assert both[:count].amax(dim=(1, 2)).min() > 0 and left.min() > 0
        for column, positions in concepts.named.items():
            own = prompt.own if column == OTHER else list(prompt.named[column])
            expected = alone[own].sum(dim=0) * left
            torch.testing.assert_close(both[list(positions)].sum(dim=0), expected, rtol=1e-3, atol=2e-5)


# Any pipeline


@pytest.mark.parametrize("name", CROSS + JOINT + SINGLE)
def test_concepts_are_read_beside_the_text_and_leave_the_picture_as_it_is(name: str) -> None:
    plain = draw(name)
    before = state_of(pipeline(name))
    with trace(pipeline(name), "full") as without:
        draw(name)
    with trace(pipeline(name), "full", concepts=NAMES) as attention:
        np.testing.assert_array_equal(draw(name), plain)
    assert state_of(pipeline(name)) == before
    for alone, expected in zip(each_map(attention, "prompt"), each_map(without, "prompt"), strict=True):
        assert torch.equal(alone, expected)
    assert attention.words == without.words and attention.concepts == tuple(NAMES)
    assert [word.text for word in attention.words_of(0, CONCEPTS)] == NAMES
    assert_beside_the_same_text(attention)
    for concept in NAMES:
        heat = attention.heatmap(concept)
        assert heat.std() > 0 and torch.equal(heat, attention.heatmap(concept, branch=CONCEPTS))


@pytest.mark.parametrize("name", ["sd", "sdxl", "pixart_sigma", "sana", "sd3", "flux", "chroma"])
def test_a_concept_that_was_said_is_read_as_the_word_is(name: str) -> None:
    """A key that is there twice has half of what both have: p / (1 + p), with p its share alone. In joint attention
    this is so in the first layer of the first step only, because a word reads the text, and a concept does not.
    """
    attention = traced(name, "dog", ["dog"])
    alone, both = (next(each_map(attention, branch)) for branch in ("prompt", CONCEPTS))
    (word,), (concept,) = attention.words, attention.words_of(0, CONCEPTS)
    share = alone[list(word.tokens)].sum(dim=0)
    torch.testing.assert_close(both[list(concept.tokens)].sum(dim=0), share / (1 + share), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("is_joint", [False, True])
@pytest.mark.parametrize("is_masked", [False, True])
def test_what_a_kernel_gives_without_concepts(is_joint: bool, is_masked: bool) -> None:
    """Keys are 2 of another kind, 3 of the text, 2 of concepts and 4 of the picture; in joint attention queries too."""
    torch.manual_seed(0)
    keys, text, concept, heads, width = 11, slice(2, 5), slice(5, 7), 2, 8
    queries = keys if is_joint else 4
    q, k, v = (torch.randn(2, heads, n, width) for n in (queries, keys, keys))
    mask = torch.rand(2, 1, queries if is_joint else 1, keys) > 0.2 if is_masked else None
    how = {"attn_mask": mask, "scale": 0.5}
    kernel = Fused(q, k, v, how, FUSED(q, k, v, **how))
    found = unwritten(kernel, Place((2, 2), (7, 7) if is_joint else (0, 0), (2, 2)), 5, 2, is_joint)
    reads = torch.ones(2, 1, queries, keys, dtype=torch.bool) & (True if mask is None else mask)
    reads[..., concept] = True  # no mask hides them
    shares = explicit_softmax(q, k, reads, scale=0.5)
    torch.testing.assert_close(found.weights().double(), shares, rtol=1e-4, atol=1e-6)
    for query in range(queries):
        is_concept = is_joint and concept.start <= query < concept.stop
        reads[:, :, query, text if is_concept else concept] = False
    expected = (explicit_softmax(q, k, reads, scale=0.5) @ v.double()).nan_to_num()
    torch.testing.assert_close(found.out.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_mask_that_is_added_hides_no_concept_and_stays_a_bias() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 5, 4) for _ in range(3))
    for hidden in (-torch.inf, torch.finfo(torch.float32).min, -10000.0):
        kernel = Fused(q, k, v, {"attn_mask": torch.tensor([0.0, hidden, 1.0, hidden, 1.0])[None, None, None]}, v)
        mask = kernel.allowing(slice(3, 5)).how["attn_mask"]
        assert mask.flatten().tolist() == [0.0, float(torch.tensor(hidden)), 1.0, 0.0, 1.0]


def test_each_of_several_prompts_has_the_concepts_it_has_alone() -> None:
    prompts = [PROMPT, "a green cat right of a red dog"]
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    with trace(pipeline("sd3"), concepts=NAMES) as both:
        call = all_of("sd3").call
        pipeline("sd3")(prompt=prompts, num_images_per_prompt=2, generator=generators, output_type="np", **call)
    for image in range(4):
        with trace(pipeline("sd3"), concepts=NAMES) as alone:
            all_of("sd3").draw(pipeline("sd3"), prompts[image // 2], seed=image)
        torch.testing.assert_close(both.heatmap("sky", image=image), alone.heatmap("sky"), **CLOSE)


def test_chosen_words_layers_and_output_maps_go_with_concepts(tmp_path: Path) -> None:
    name, pattern = "flux", "transformer_blocks.1.*"
    with trace(pipeline(name), "step", concepts=NAMES, output=True) as whole:
        draw(name)
    with trace(pipeline(name), "step", words=["circle"], layers=[pattern], concepts=NAMES, output=True) as chosen:
        draw(name)
    (layer,) = chosen.layers
    for which in ({}, {"step": 1}, {"reduce": "output"}, {"of": "text"}, {"of": "words"}):
        found = chosen.heatmap("green grass", layer=layer, **which)
        torch.testing.assert_close(found, whole.heatmap("green grass", layer=layer, **which), **CLOSE)
    for layer in whole.layers:  # of the text and the concepts together
        total = whole.maps(layer, branch=CONCEPTS, reduce="output").sum(dim=0)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)
    whole.save(tmp_path / "trace.safetensors")
    loaded = AttentionTrace.load(tmp_path / "trace.safetensors")
    assert loaded.recording == whole.recording and loaded.concepts == whole.concepts
    assert loaded.words == whole.words and loaded.tokens_of(0, CONCEPTS) == whole.tokens_of(0, CONCEPTS)
    for which in ({}, {"reduce": "output"}):
        torch.testing.assert_close(loaded.heatmap("sky", **which), whole.heatmap("sky", **which), rtol=0, atol=2**-10)


def test_in_joint_attention_a_concept_is_compared_by_its_own_output() -> None:
    """In the first layer of the first step a concept that was said differs from the word by what it reads alone."""
    with trace(pipeline("flux"), "step", concepts=["dog"], output=True) as attention:
        draw("flux", "dog")
    with trace(pipeline("sd"), "step", concepts=["dog"], output=True) as cross:
        draw("sd", "dog")
    maps = attention.maps(attention.layers[0], step=0, branch=CONCEPTS, reduce="output")
    assert not torch.allclose(maps[0], maps[attention.tokens_of(0, CONCEPTS).index(OTHER)], atol=1e-3)
    maps = cross.maps(cross.layers[0], step=0, branch=CONCEPTS, reduce="output")
    torch.testing.assert_close(maps[0], maps[cross.tokens_of(0, CONCEPTS).index(OTHER)])  # values know no other tokens


@pytest.mark.parametrize("name", REFUSED)
def test_other_denoisers_refuse_concepts_before_they_draw(name: str) -> None:
    before = state_of(pipeline(name))
    with pytest.raises(
        ValueError, match=r"^\w+ cannot read concepts beside its prompt; those that can are: AuraFlow"
    ) as e:
        traced(name)
    assert len(str(e.value).splitlines()) == 1 and state_of(pipeline(name)) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "deepfloyd",
            "^UNet2DConditionModel cannot read concepts: with them beside the prompt its prediction is another",
        ),
        ("kandinsky21", "^KandinskyPipeline cannot read concepts: it has no encode_prompt$"),
        (
            "sd_explicit",
            r"^UNet2DConditionModel cannot read concepts: layers do so in a way that cannot be seen \(down",
        ),
        ("sd_sliced", r"^UNet2DConditionModel cannot read concepts: layers do so in a way that cannot be seen \(down"),
    ],
)
def test_what_concepts_would_change_or_cannot_be_kept_out_of_is_refused(name: str, message: str) -> None:
    before = state_of(pipeline(name))
    with pytest.raises(ValueError, match=message):
        traced(name)
    assert state_of(pipeline(name)) == before


def test_every_denoiser_that_can_read_concepts_is_tested() -> None:
    pipes = [pipeline(name) for name in CROSS + JOINT + SINGLE]
    tested = {type(pipe.transformer if "transformer" in pipe.components else pipe.unet).__name__ for pipe in pipes}
    assert tested == {name for name, layout in LAYOUTS.items() if layout.longer is not None}


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_an_existing_picture_is_read_for_concepts_alone(name: str) -> None:
    picture = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    attention = attribute(pipeline(name), picture, "", levels=(0.3, 0.6), draws=2, concepts=NAMES)
    assert attention.words == [] and attention.concepts == tuple(NAMES) and len(attention.pictures) == 1
    assert attention.recording.texts[CONCEPTS][0].text == "sky\ngreen grass" and attention.prompts == [""]
    labels = attention.segmentation(branch=CONCEPTS, least=0.0)
    assert set(labels.unique().tolist()) <= {-1, 0, 1} and (labels >= 0).any()
    assert (attention.segmentation(branch=CONCEPTS, least=1.0) == -1).all()
    said = attribute(pipeline(name), picture, "green grass", levels=(0.3, 0.6), draws=2, concepts=["sky"])
    assert [str(word) for word in said.words] == ["green", "grass"] and said.heatmap("sky").std() > 0
    with pytest.raises(ValueError, match="the caption is empty: describe the picture, or name concepts"):
        attribute(pipeline(name), picture, "")


# Our pipeline


def draw_ours(pipe: TextToImagePipeline, prompt: str | list[str] = PROMPT, **changes: Any) -> Tensor:
    given = {"num_inference_steps": 2, "output_type": "pt", "generator": torch.Generator().manual_seed(0)} | changes
    return pipe(prompt, **given).images


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("output", [False, True])
def test_concepts_leave_our_pictures_as_they_are_bit_for_bit(
    tiny_pipe: TextToImagePipeline, guidance: float, output: bool
) -> None:
    prompts = [PROMPT, "a star"]
    with trace(tiny_pipe, "full", output=output) as without:
        plain = draw_ours(tiny_pipe, prompts, guidance_scale=guidance)
    with trace(tiny_pipe, "full", output=output, concepts=["green star", "heart"]) as attention:
        assert torch.equal(draw_ours(tiny_pipe, prompts, guidance_scale=guidance), plain)
    for alone, expected in zip(each_map(attention, "prompt"), each_map(without, "prompt"), strict=True):
        assert torch.equal(alone, expected)
    assert_beside_the_same_text(attention)
    assert [str(word) for word in attention.words_of(1, CONCEPTS)] == ["green star", "heart"]
    assert set(attention.columns_of(1, CONCEPTS)) == {SPECIAL, OTHER}
    for layer in attention.layers:
        for image in (0, 1):
            total = attention.maps(layer, image=image, branch=CONCEPTS).sum(dim=0)
            torch.testing.assert_close(total, torch.ones_like(total))
    if output:
        total = attention.maps(layer, branch=CONCEPTS, reduce="output").sum(dim=0)
        torch.testing.assert_close(total, torch.ones_like(total))
        assert attention.heatmap("heart", reduce="output").std() > 0


def test_in_output_space_our_concepts_are_compared_with_what_was_written(tiny_pipe: TextToImagePipeline) -> None:
    with trace(tiny_pipe, "step", concepts=["green star", "heart"], output=True) as attention:
        _, passes = outputs_of(tiny_pipe, lambda: draw_ours(tiny_pipe, guidance_scale=1.0))
    own = [*attention.recording.texts["prompt"][0].own, 10, 11, 12]  # the concepts follow the prompt's ten tokens
    for layer, grid in attention.recording.grids.items():
        for step, (both, alone) in enumerate(zip(passes[layer][::2], passes[layer][1::2], strict=True)):
            (out, values), (written, _) = both, alone
            torch.testing.assert_close(out, written, rtol=1e-3, atol=1e-5)  # nothing of a concept
            expected = (values[0, own] @ out[0].T).softmax(dim=0)[-3:].unflatten(1, grid)
            found = attention.maps(layer, step=step, branch=CONCEPTS, reduce="output")[:3]
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_concept_that_was_said_is_read_as_our_word_is(tiny_pipe: TextToImagePipeline) -> None:
    with trace(tiny_pipe, "full", concepts=["star"]) as attention:
        draw_ours(tiny_pipe, "star")
    (word,), (concept,) = attention.words, attention.words_of(0, CONCEPTS)
    for alone, both in zip(each_map(attention, "prompt"), each_map(attention, CONCEPTS), strict=True):
        share = alone[list(word.tokens)].sum(dim=0)
        torch.testing.assert_close(both[list(concept.tokens)].sum(dim=0), share / (1 + share), rtol=1e-4, atol=1e-6)


def test_our_attribute_reads_concepts_of_a_picture(tiny_pipe: TextToImagePipeline) -> None:
    with trace(tiny_pipe):
        picture = tiny_pipe(PROMPT, num_inference_steps=1).images[0]
    plain = attribute(tiny_pipe, picture, PROMPT, draws=2)
    attention = attribute(tiny_pipe, picture, PROMPT, draws=2, concepts=["star", "sky"], output=True)
    assert torch.equal(attention.heatmap("circle"), plain.heatmap("circle"))
    assert len(attention.recording.texts[CONCEPTS]) == 1 and attention.heatmap("star").std() > 0
    assert attention.recording.settings["unknown_words"] == ["sky"]
    ranked = attention.words_at((0, 0, 16, 16), branch=CONCEPTS)
    assert {str(word) for word, _ in ranked} == {"star", "sky"} and ranked[0][1] >= ranked[1][1] > 0


def test_concepts_that_are_none_are_refused(tiny_pipe: TextToImagePipeline) -> None:
    for names, message in (
        ("sky", "concepts is a list of texts, not 'sky'"),
        ([1], "concepts is a list of texts"),
        (["sky", "!"], "the concept '!' has no word: name what may be in the picture"),
        (["Red  star", "sky", "red star "], "the concept 'Red star' is named twice"),
        (["red " * 99], "99 words"),
    ):
        with (
            pytest.raises(ValueError, match=message if "99" not in message else "tokens"),
            trace(tiny_pipe, concepts=names),
        ):
            draw_ours(tiny_pipe)
    with trace(tiny_pipe, concepts=["Green Star"]) as attention:
        draw_ours(tiny_pipe)
    assert torch.equal(attention.heatmap("green  star"), attention.heatmap(attention.words_of(0, CONCEPTS)[0]))
    for branch, message in (
        ("prompt", "'sky' is not in the prompt; its words are: a, red, .*; the concepts are: Green Star$"),
        (CONCEPTS, "'sky' is no concept; they are: Green Star$"),
    ):
        with pytest.raises(ValueError, match=message):
            attention.heatmap("sky", branch=branch)


def test_concepts_count_in_the_budget(tiny_pipe: TextToImagePipeline) -> None:
    """With the tokens of each and two columns more: start and end, and the words of the prompt."""
    with trace(tiny_pipe, "full", concepts=["green star", "heart"], output=True) as attention:
        draw_ours(tiny_pipe, guidance_scale=1.0)
    tokens = attention.recording.tokens, attention.recording.columns(CONCEPTS)
    assert tokens == (10, 3 + 2)
    size = 4 * sum(total.numel() for sums in (attention._sums, attention._similar) for total in sums.values())
    assert size == 4 * sum(tokens) * sum(h * w for h, w in attention.recording.grids.values()) * 2 * 3
    with trace(tiny_pipe, "full", size, concepts=["green star", "heart"], output=True):
        draw_ours(tiny_pipe, guidance_scale=1.0)
    with (
        trace(tiny_pipe, "full", size - 1, concepts=["green star", "heart"], output=True),
        pytest.raises(ValueError, match="would take"),
    ):
        draw_ours(tiny_pipe, guidance_scale=1.0)


# The reading with concepts, and questions about it


def test_beside_concepts_what_was_read_is_in_few_columns() -> None:
    words = (Word("red", 0, 3, (1,)), Word("dog", 5, 8, (3, 4)))
    text = Text("red, dog", words, ("<s>", "red", ",", "do", "g", "</s>", PADDING, PICTURE), (0, 5))
    found, places = beside(text, 10, [("blue sky", ("blue", "sky")), ("sea", ("sea",))])
    assert found.tokens == ("blue", "sky", "sea", SPECIAL, PADDING, PICTURE, OTHER) and found.is_whole()
    assert found.words == (Word("blue sky", 0, 8, (0, 1)), Word("sea", 9, 12, (2,))) and found.text == "blue sky\nsea"
    assert places == [3, 6, 6, 6, 6, 3, 4, 5, 6, 6, 0, 1, 2]
    assert found.named == {SPECIAL: (3,), PADDING: (4,), PICTURE: (5,), OTHER: (6,)}


SIZE = (32, 32)


def with_maps(*maps: Tensor) -> AttentionTrace:
    """A trace of an empty prompt with the concepts "sky" and "tree", which have these maps (h, w), on a plain one."""
    attention = AttentionTrace(concepts=["sky", "tree"])
    empty = Text("", (), ("<s>", "</s>"), (0, 1))
    attention.start(
        Recording({"prompt": [empty]}, SIZE, {"pixel": SIZE}, {"pixel": 1}, 1), [("sky", ("sky",)), ("tree", ("tree",))]
    )
    rest = torch.full(SIZE, 0.5)
    attention.recorder(0, {"prompt": slice(0, 1)})("pixel", torch.stack([rest, rest]).flatten(1).T[None, None], SIZE)
    rest = (1 - sum(maps)) / 2
    both = torch.stack([rest, rest, *maps])
    attention.recorder(0, {CONCEPTS: slice(0, 1)})("pixel", both.flatten(1).T[None, None], SIZE)
    attention.finish(torch.full((1, *SIZE, 3), 128, dtype=torch.uint8))
    return attention


def square(rows: slice, columns: slice, high: float, low: float) -> Tensor:
    heat = torch.full(SIZE, low)
    heat[rows, columns] = high
    return heat


UP, DOWN = slice(0, 16), slice(16, 32)


@pytest.mark.parametrize(("high", "low"), [(0.3, 0.02), (0.45, 0.25), (0.45, 0.3)])
def test_a_concept_that_is_there_is_masked_however_much_of_it_is_everywhere(high: float, low: float) -> None:
    attention = with_maps(square(UP, UP, high, low), square(DOWN, slice(0, 32), high, low))
    for name, rows, columns in (("sky", UP, UP), ("tree", DOWN, slice(0, 32))):
        expected = square(rows, columns, 1, 0) == 1
        found = attention.mask(name)
        assert (found & expected).sum() / (found | expected).sum() > 0.8  # on an even picture, edges are smoothed
    for labels in (attention.segmentation(branch=CONCEPTS), attention.masks(branch=CONCEPTS)):
        assert labels[4, 4] == 0 and labels[28, 4] == labels[28, 28] == 1 and labels[4, 28] == -1


def test_a_concept_that_is_nowhere_has_an_empty_mask() -> None:
    attention = with_maps(square(UP, UP, 0.4, 0.02), square(DOWN, DOWN, 0.06, 0.02))
    assert not attention.mask("tree").any() and attention.mask("sky").any()
    assert attention.mask("tree", least=0.01)[28, 28] and attention.mask("tree", least=0.01).float().mean() < 0.4
    for labels in (attention.segmentation(branch=CONCEPTS), attention.masks(branch=CONCEPTS)):
        assert labels[4, 4] == 0 and (labels[DOWN] == -1).all()
    assert attention.masks(branch=CONCEPTS, least=0.01)[28, 28] == 1
    assert 0 < LEAST < 0.4
    for least in ("a", float("nan"), None):
        with pytest.raises(ValueError, match=r"^least is a number, the smallest share that counts, not"):
            attention.mask("sky", least=least)


def test_a_pixel_of_two_concepts_belongs_to_the_larger_share() -> None:
    attention = with_maps(square(UP, slice(0, 32), 0.5, 0.0), square(slice(0, 32), UP, 0.3, 0.0))
    both = attention.mask("sky") & attention.mask("tree")
    assert both[4, 4] and attention.masks(branch=CONCEPTS)[4, 4] == attention.segmentation(branch=CONCEPTS)[4, 4] == 0
    assert attention.masks(branch=CONCEPTS)[28, 4] == 1


def test_a_question_finds_the_prompts_word_before_the_concept(tiny_pipe: TextToImagePipeline) -> None:
    with trace(tiny_pipe, concepts=["red", "red circle", "heart"]) as attention:
        draw_ours(tiny_pipe)
    assert torch.equal(attention.heatmap("red"), attention.heatmap(attention.words[1]))
    assert not torch.equal(attention.heatmap("red"), attention.heatmap("red", branch=CONCEPTS))
    red, circle, _ = attention.words_of(0, CONCEPTS)
    assert torch.equal(attention.heatmap(red), attention.heatmap("red", branch=CONCEPTS))
    assert torch.equal(attention.heatmap(circle), attention.heatmap("red circle", branch=CONCEPTS))
    assert attention.measure("heart").mass > 0 and attention.leakage(branch=CONCEPTS).shape == (3, 3)
