"""Every argument of a call in the forms that people give it: equal to the plain form, or refused in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines import TextToImagePipeline, TranslationPipeline, trace
from unet_xattn import AttentionTrace
from unet_xattn.words import is_index

PROMPTS = ["a red circle", "a star"]
NOISE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def generators(count: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


def draw(pipe: TextToImagePipeline, **given: Any) -> Tensor:
    plain = {"prompt": PROMPTS, "num_inference_steps": 2, "output_type": "latent"}
    if "generator" not in given and "latents" not in given:
        each = given.get("num_images_per_prompt", 1)
        plain["generator"] = generators(2 * each if is_index(each, 10) else 2)
    return pipe(**plain | given).images


SAME: list[tuple[str, Any, Any]] = [
    ("prompt", PROMPTS, tuple(PROMPTS)),
    ("prompt", PROMPTS, [np.str_(text) for text in PROMPTS]),
    ("height", 16, np.int64(16)),
    ("width", 16, np.uint8(16)),
    ("num_inference_steps", 2, np.int64(2)),
    ("guidance_scale", 2.5, np.float32(2.5)),
    ("guidance_scale", 2, np.int32(2)),
    ("guidance_interval", (0.25, 0.75), [0.25, 0.75]),
    ("guidance_interval", (0.25, 0.75), np.array([0.25, 0.75], np.float32)),
    ("guidance_interval", (0.25, 0.75), torch.tensor([0.25, 0.75])),
    ("guidance_interval", (0.0, 1.0), (0, 1)),
    ("negative_prompt", PROMPTS[::-1], tuple(PROMPTS[::-1])),
    ("negative_prompt", ["a star"] * 2, "a star"),
    ("negative_prompt", ["a star"] * 2, np.str_("a star")),
    ("negative_prompt", ["", ""], None),
    ("num_images_per_prompt", 2, np.int64(2)),
    ("generator", generators, lambda: tuple(generators())),
    ("latents", NOISE, NOISE.numpy()),
    ("latents", NOISE, NOISE.double()),
    ("latents", NOISE, NOISE.numpy().astype(">f8")),
    ("latents", NOISE, np.flip(np.flip(NOISE.numpy()).copy())),
    ("ignore", [[2], []], ((2,), ())),
    ("ignore", [[2], [1]], np.array([[2], [1]])),
    ("ignore", [[2], [1]], [np.array([2]), (np.int64(1),)]),
    ("ignore", [[], []], None),
    ("ignore_below", 0.5, np.float32(0.5)),
    ("callback_on_step_end_tensor_inputs", ["latents"], ("latents",)),
    ("callback_on_step_end", None, lambda *_: None),
    ("callback_on_step_end", None, lambda *_: {}),
    ("output_type", "latent", np.str_("latent")),
]


@pytest.mark.parametrize(("name", "plain", "other"), SAME)
def test_another_form_of_an_argument_draws_the_same_picture(
    tiny_pipe: TextToImagePipeline, name: str, plain: Any, other: Any
) -> None:
    def value(form: Any) -> Any:
        return form() if name == "generator" else form  # new ones for each drawing

    extra = {"ignore": [[2], [1]]} if name == "ignore_below" else {}
    with trace(tiny_pipe) as attention:
        found, expected = (draw(tiny_pipe, **{name: value(form)}, **extra) for form in (other, plain))
    assert torch.equal(found, expected)
    assert attention.recording.steps == 2 and attention.prompts[0] == PROMPTS[0]


def test_a_trace_of_numpys_numbers_can_be_saved(tiny_pipe: TextToImagePipeline, tmp_path: Path) -> None:
    with trace(tiny_pipe) as attention:
        draw(
            tiny_pipe,
            height=np.int64(16),
            num_inference_steps=np.int64(2),
            guidance_scale=np.float32(2.5),
            guidance_interval=np.array([0.0, 1.0]),
        )
    attention.save(tmp_path / "trace.safetensors")
    assert AttentionTrace.load(tmp_path / "trace.safetensors").recording.settings == attention.recording.settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", {"a red circle": 1, "a star": 2}),
        ("prompt", {"a red circle"}),
        ("prompt", np.array(PROMPTS)),
        ("prompt", [PROMPTS]),
        ("prompt", [None]),
        ("prompt", b"a star"),
        ("prompt", torch.tensor(1)),
        ("height", "32"),
        ("height", 32.0),
        ("width", True),
        ("width", [32]),
        ("width", 10**9),
        ("num_inference_steps", torch.tensor(2)),
        ("num_inference_steps", np.array([2])),
        ("num_inference_steps", [2]),
        ("guidance_scale", torch.tensor(3.0)),
        ("guidance_scale", [3.0, 3.0]),
        ("guidance_scale", np.float32("nan")),
        ("guidance_scale", np.True_),
        ("guidance_interval", None),
        ("guidance_interval", 0.5),
        ("guidance_interval", (0.5,)),
        ("guidance_interval", (0.1, 0.5, 0.9)),
        ("guidance_interval", ("0", "1")),
        ("guidance_interval", (float("nan"), 1.0)),
        ("guidance_interval", {0.1: 0.5, 0.9: 1}),
        ("negative_prompt", 3),
        ("negative_prompt", ["a star"]),
        ("negative_prompt", ["a star", None]),
        ("negative_prompt", np.array(PROMPTS)),
        ("negative_prompt", [PROMPTS, PROMPTS]),
        ("num_images_per_prompt", "2"),
        ("num_images_per_prompt", 1.5),
        ("num_images_per_prompt", None),
        ("num_images_per_prompt", True),
        ("generator", 7),
        ("generator", [1, 2]),
        ("generator", [None, None]),
        ("generator", [torch.Generator()]),
        ("generator", (torch.Generator(),) * 3),
        ("latents", NOISE.tolist()),
        ("latents", list(NOISE)),
        ("latents", NOISE > 0),
        ("latents", NOISE.numpy().astype(int)),
        ("latents", NOISE * float("nan")),
        ("latents", NOISE[:1]),
        ("output_type", None),
        ("output_type", ["pil"]),
        ("callback_on_step_end", 3),
        ("callback_on_step_end", lambda *_: []),
        ("callback_on_step_end", lambda *_: {"latent": NOISE}),
        ("callback_on_step_end", lambda *_: {"latents": None}),
        ("callback_on_step_end", lambda *_: {"latents": NOISE.numpy()}),
        ("callback_on_step_end", lambda *_: {"latents": NOISE[:1]}),
        ("callback_on_step_end", lambda *_: {"latents": NOISE[..., :16]}),
        ("callback_on_step_end", lambda *_: {"prompt_embeds": torch.zeros(4, 5, 7)}),
        ("callback_on_step_end_tensor_inputs", "latents"),
        ("callback_on_step_end_tensor_inputs", None),
        ("callback_on_step_end_tensor_inputs", [3]),
        ("attention", True),
        ("ignore", [1, 2]),
        ("ignore", 3),
        ("ignore", [[1.0], []]),
        ("ignore", [[True], []]),
        ("ignore", ["12", "1"]),
        ("height", "32\n32"),
        ("width", np.eye(2)),
        pytest.param("num_inference_steps", 10**5000, id="digits"),
        ("guidance_interval", np.eye(3)),
        ("generator", "a\nb"),
        ("num_images_per_prompt", np.eye(2)),
        ("output_type", np.array(["pil", "np"])),
        ("callback_on_step_end_tensor_inputs", [np.array(["latents", "clean"])]),
        ("ignore", np.array(3)),
        ("ignore", [np.array(3), []]),
        ("ignore_below", "0.5"),
        ("ignore_below", None),
        ("ignore_below", float("nan")),
        ("ignore_below", 1.5),
    ],
)
def test_any_other_form_is_refused_in_one_line(tiny_pipe: TextToImagePipeline, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]{10,250}$"):
        draw(tiny_pipe, **{name: value})


def test_one_prompt_has_the_memory_of_a_list_of_one(tiny_pipe: TextToImagePipeline) -> None:
    expected, mask = tiny_pipe.encode_prompt(PROMPTS[:1])
    for form in (PROMPTS[0], (PROMPTS[0],), np.str_(PROMPTS[0])):
        memory, read = tiny_pipe.encode_prompt(form)
        assert torch.equal(memory, expected) and torch.equal(read, mask)
    for wrong in (None, [], [None], 3, b"a star", [PROMPTS], np.array(PROMPTS)):
        with pytest.raises(ValueError, match=r"^[^\n]{10,250}$"):
            tiny_pipe.encode_prompt(wrong)


def test_a_translation_takes_numbers_of_numpy_and_tuples(tiny_bilingual_pipe: TextToImagePipeline) -> None:
    pipe = TranslationPipeline(tiny_bilingual_pipe.tokenizer, tiny_bilingual_pipe.text_encoder)
    plain = [translation.text for translation in pipe(PROMPTS, 2, 0.5, 4)]
    for texts in (tuple(PROMPTS), [np.str_(text) for text in PROMPTS]):
        found = pipe(texts, np.int64(2), np.float32(0.5), np.int64(4))
        assert [translation.text for translation in found] == plain
    wrong: list[tuple[str, Any]] = [(name, value) for name in ("beams", "max_tokens") for value in (0, "2", 1.5, True)]
    wrong += [("text", value) for value in (None, 3, {"a star": 1}, np.array(PROMPTS), [None], b"a")]
    wrong += [("length_penalty", value) for value in (None, "1", float("nan"), -1)]
    for name, value in [*wrong, ("beams", None), ("beams", 10**9), ("max_tokens", 10**9)]:
        with pytest.raises(ValueError, match=r"^[^\n]{10,250}$"):
            pipe(**{"text": "a star"} | {name: value})
    for call in (lambda value: list(pipe.stream(value)), lambda value: pipe.read("a star", value), pipe.read):
        with pytest.raises((ValueError, TypeError)):
            call(None)


@pytest.fixture(scope="module")
def attention(tiny_pipe: TextToImagePipeline) -> AttentionTrace:
    with trace(tiny_pipe, keep="full") as attention:
        draw(tiny_pipe)
    return attention


QUESTIONS: dict[str, Callable[[AttentionTrace, Any], Any]] = {
    "word": lambda trace, value: trace.heatmap(value),
    "occurrence": lambda trace, value: trace.heatmap("red", occurrence=value),
    "image": lambda trace, value: trace.heatmap(1, image=value),
    "head": lambda trace, value: trace.heatmap("red", head=value),
    "step": lambda trace, value: trace.heatmap("red", step=value),
    "layer": lambda trace, value: trace.heatmap("red", layer=value),
    "branch": lambda trace, value: trace.heatmap(1, branch=value),
    "region": lambda trace, value: dict(trace.words_at(value)),
    "tokens": lambda trace, value: trace.heatmaps(value),
    "reduce": lambda trace, value: trace.heatmap("red", reduce=value),
    "scale": lambda trace, value: trace.heatmap("red", scale=value),
}


@pytest.mark.parametrize(
    ("name", "plain", "other"),
    [
        ("word", "red circle", np.str_("red circle")),
        ("word", 2, np.int64(2)),
        ("occurrence", 0, np.int64(0)),
        ("image", 1, np.int64(1)),
        ("head", 1, np.uint8(1)),
        ("step", 1, np.int64(1)),
        ("branch", "negative", np.str_("negative")),
        ("region", (2, 3, 9, 20), [2, 3, 9, 20]),
        ("region", (2, 3, 9, 20), np.array([2, 3, 9, 20])),
        ("region", (2, 3, 9, 20), torch.tensor([2, 3, 9, 20])),
        ("region", (2, 3, 9, 20), tuple(np.array([2, 3, 9, 20]))),
        ("region", (2, 3), [2, 3]),
        ("tokens", [1, 2], (1, 2)),
        ("tokens", [1, 2], np.array([1, 2])),
        ("tokens", [1, 2], torch.tensor([1, 2])),
        ("tokens", [1], 1),
        ("region", torch.eye(32), np.eye(32)),
        ("region", torch.eye(32), np.eye(32, dtype=bool)),
        ("region", torch.eye(32), np.eye(32).tolist()),
    ],
)
def test_another_form_of_a_question_has_the_same_answer(
    attention: AttentionTrace, name: str, plain: Any, other: Any
) -> None:
    expected, found = QUESTIONS[name](attention, plain), QUESTIONS[name](attention, other)
    assert torch.equal(expected, found) if isinstance(expected, Tensor) else expected == found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("word", value) for value in (None, 1.0, True, -1, ["red"], b"red", torch.tensor(1.0))],
        *[(name, value) for name in ("occurrence", "image") for value in (None, "0", 0.0, -1, [0])],
        *[(name, value) for name in ("head", "step") for value in ("0", 0.5, -1)],
        *[("branch", value) for value in (None, ["prompt"], {}, np.array(["prompt", "negative"]))],
        *[("layer", value) for value in (3, ["mid"], np.array(["mid", "down.0.0"]))],
        *[(name, value) for name in ("head", "step") for value in (np.array([0, 1]), [0], torch.zeros(2))],
        *[(name, value) for name in ("reduce", "scale") for value in (None, ["mean"], np.array(["mean", "peak"]))],
        *[("tokens", value) for value in (None, [99], [-1], [0.5], "red", ["red"], np.array(0.5))],
        *[("region", value) for value in ([10**30, 0], (10**400, 0.5), np.eye(32) * 1j, (1 + 0j, 2 + 0j), "a\nb")],
        *[("region", value) for value in (None, "all", 3, (1, 2, 3), (1.0, 2.0), (1, 2, 3.5, 4), [[1, 2], [3]])],
        *[("region", value) for value in (np.zeros(4, bool), {1, 2}, torch.ones(1, 32, 32), np.eye(32) * 255)],
    ],
)
def test_any_other_form_of_a_question_is_refused(attention: AttentionTrace, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]{10,250}$"):
        QUESTIONS[name](attention, value)


def test_a_word_of_another_prompt_is_refused(attention: AttentionTrace) -> None:
    circle = attention.words_of(0)[2]
    assert attention.heatmap(circle).shape == (32, 32)
    for question in ({"image": 1}, {"branch": "negative"}):
        with pytest.raises(ValueError, match=r"the word 'circle' is not of this prompt"):
            attention.heatmap(circle, **question)


@pytest.mark.parametrize("keep", [["step"], ("step",), {"step"}, np.array(["step"]), "step", np.str_("step")])
def test_the_axes_to_keep_are_named_in_any_form(keep: Any) -> None:
    assert AttentionTrace(keep).keep == {"step"}


def test_nothing_is_asked_about_nothing(tiny_pipe: TextToImagePipeline, attention: AttentionTrace) -> None:
    assert attention.heatmaps([]).shape == (0, 32, 32)
    for branch in ("prompt", "negative"):
        count = len(attention.words_of(0, branch))
        assert attention.leakage(branch=branch).shape == (count, count)
    assert count == 0  # the negative prompt is empty


@pytest.mark.parametrize("keep", [None, 3, "steps", ["mean"], [None], [["step"]], b"step", True, np.array(3)])
def test_other_axes_are_refused(keep: Any) -> None:
    with pytest.raises(ValueError, match="keep can name step, head"):
        AttentionTrace(keep)
