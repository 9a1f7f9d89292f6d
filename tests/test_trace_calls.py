"""Calls of recorded pipelines: batches, prompts, branches, what is recorded, threads, errors, and how a model runs."""

import re
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from families_of_pipelines import all_of
from tiny_pipelines import FAMILIES, pipeline
from torch import nn

from pipelines import trace
from unet_xattn import AttentionTrace
from unet_xattn.words import OTHER, PADDING, PICTURE, SPECIAL

PROMPT = "a red circle left of a blue square"
TWIN = "a green cat right of a red dog"  # with as many tokens
CLOSE = {"rtol": 0, "atol": 2e-6}
HALF = {"rtol": 0, "atol": 2**-10}


Prompt = str | list[str]


def draw(pipe: DiffusionPipeline, name: str, prompt: Prompt = PROMPT, *seeds: int, **changes: Any) -> np.ndarray:
    """Pictures of a family's call, one of each seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or (0,)]
    arguments = all_of(name).call | changes
    return pipe(prompt=prompt, **arguments, generator=generators, output_type="np", return_dict=False)[0]


def traced(name: str, prompt: Prompt = PROMPT, *seeds: int, keep: str = "step", **changes: Any) -> AttentionTrace:
    with trace(pipeline(name), keep) as attention:
        draw(pipeline(name), name, prompt, *seeds, **changes)
    return attention


def first(attention: AttentionTrace, branch: str = "prompt", **which: Any) -> torch.Tensor:
    """The maps of the first layer in the first step, without columns that only longer texts have."""
    columns = len(attention.recording.texts[branch][which.get("image", 0)].tokens)
    return attention.maps(attention.layers[0], step=0, branch=branch, **which)[:columns]


# Prompts and pictures


BATCHED = ["sd", "sdxl", "pixart_sigma", "sana", "hunyuandit", "lumina", "sd3", "flux", "chroma", "cogview4", "z_image"]


@pytest.mark.parametrize("name", [*BATCHED, "flux_true_cfg", "qwenimage"])
def test_two_prompts_with_two_pictures_each_have_the_maps_they_have_alone(name: str) -> None:
    """The prompts have as many tokens: diffusers gives some families the masks of a batch in another order."""
    prompts = [PROMPT, TWIN]
    both = {"negative_prompt": ["low quality"] * 2} if name in ("flux_true_cfg", "qwenimage") else {}
    attention = traced(name, prompts, 0, 1, 2, 3, num_images_per_prompt=2, **both)
    assert attention.prompts == [PROMPT, PROMPT, TWIN, TWIN]
    for image, (prompt, word) in enumerate([(PROMPT, "circle")] * 2 + [(TWIN, "cat")] * 2):
        alone = traced(name, prompt, image)
        heat = attention.heatmap(word, image=image, step=0)
        torch.testing.assert_close(heat, alone.heatmap(word, step=0), **CLOSE)
        assert not torch.allclose(heat, attention.heatmap(word, image=image ^ 1, step=0), **CLOSE)


def test_prompts_that_are_each_others_negative_prompts_keep_their_pictures() -> None:
    prompts = [PROMPT, TWIN]
    attention = traced("sd", prompts, 0, 1, negative_prompt=prompts[::-1])
    assert attention.prompts == prompts
    for image, word in enumerate(("circle", "cat")):
        alone = traced("sd", prompts[image], image, negative_prompt=prompts[1 - image])
        torch.testing.assert_close(attention.heatmap(word, image=image, step=0), alone.heatmap(word, step=0), **CLOSE)
        assert attention.words_of(image, "negative") == alone.words_of(0, "negative")


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux_true_cfg", "chroma", "z_image", "cogview4", "lumina"])
def test_a_negative_prompt_that_equals_the_prompt_reads_the_same(name: str) -> None:
    attention = traced(name, PROMPT, negative_prompt=PROMPT)
    assert attention.words_of(0, "negative") == attention.words
    torch.testing.assert_close(first(attention, "negative"), first(attention), **CLOSE)


@pytest.mark.parametrize(
    ("name", "off"),
    [
        ("sd", {"guidance_scale": 1.0}),  # one pass, [neg, prompt]
        ("z_image", {"guidance_scale": 0.0}),  # one pass, [prompt, neg]
        ("lumina", {"guidance_scale": 1.0}),  # likewise
        ("flux_true_cfg", {"true_cfg_scale": 1.0}),  # two passes
        ("ovis", {"guidance_scale": 1.0}),  # likewise
    ],
)
def test_without_guidance_there_is_the_prompt_alone(name: str, off: dict[str, float]) -> None:
    guided, plain = traced(name), traced(name, **off)
    assert set(guided.recording.texts) == {"prompt", "negative"} and set(plain.recording.texts) == {"prompt"}
    torch.testing.assert_close(first(guided), first(plain), **CLOSE)
    with pytest.raises(ValueError, match="branch 'negative' was not recorded; recorded: prompt"):
        plain.heatmap("circle", branch="negative")


def test_embedded_guidance_is_one_pass() -> None:
    one, other = traced("flux", guidance_scale=1.0), traced("flux", guidance_scale=8.0)
    assert set(one.recording.texts) == {"prompt"}
    assert not torch.allclose(first(one), first(other), atol=1e-4)


def test_second_and_third_prompts_are_lines_of_the_text() -> None:
    attention = traced(
        "sd3", "a red circle", prompt_2="a blue dog", prompt_3="a cat", negative_prompt="low", negative_prompt_3="photo"
    )
    assert attention.prompts == ["a red circle\na blue dog\na cat"]
    columns = {word.text: word.tokens for word in attention.words}
    assert columns["circle"] == columns["dog"] == (3,)  # CLIP's encodings are side by side
    assert [attention.tokens_of(0)[i] for i in columns["cat"]] == ["▁cat"]
    assert attention.recording.texts["negative"][0].text == "low\nphoto"
    flux = traced("flux", "a red circle", prompt_2="a blue dog")
    assert [str(word) for word in flux.words] == ["a", "blue", "dog"]  # its T5 alone is read


def test_what_is_cut_off_is_named() -> None:
    long = "red " * 80 + "dog"
    attention = traced("sd", long)
    assert len(attention.words) == 75 and [str(word) for word in attention.cut_off()] == ["red"] * 5 + ["dog"]
    with pytest.raises(ValueError, match="'dog' was cut off"):
        attention.heatmap("dog")
    with pytest.raises(ValueError, match="'red' was cut off"):
        attention.heatmap(attention.cut_off()[0])
    assert attention.heatmap("red", occurrence=74).max() > 0
    whole = traced("sd3", long)  # CLIP reads 77 tokens, T5 256
    assert whole.cut_off() == []
    assert [whole.tokens_of(0)[i] for i in whole.words[-1].tokens] == ["▁dog"]


@pytest.mark.parametrize("name", ["sd", "pixart_sigma", "sana", "flux", "z_image", "hunyuandit", "lumina"])
def test_capitals_and_spaces_are_as_they_were_typed(name: str) -> None:
    attention = traced(name, "  A Red CIRCLE,  dog ")
    assert [str(word) for word in attention.words] == ["A", "Red", "CIRCLE", "dog"]
    for word in attention.words:
        tokens = [attention.tokens_of(0)[i] for i in word.tokens]
        letters = "".join(token.replace("</w>", "").strip("▁Ġ") for token in tokens).lower()
        assert letters == word.text.lower() * (2 if name == "hunyuandit" else 1)
    assert torch.equal(attention.heatmap("red circle"), attention.heatmap("RED  circle"))


@pytest.mark.parametrize("name", ["z_image", "flux2_klein", "lumina2"])
def test_a_word_that_the_template_has_too_is_the_prompts(name: str) -> None:
    attention = traced(name, "a user and a color")
    (token,) = next(word for word in attention.words if word.text == "user").tokens
    tokens = [re.sub("[▁Ġ]", "", token) for token in attention.tokens_of(0)]
    assert tokens[token - 1 : token + 2] == ["a", "user", "and"] and tokens.count("user") > 1
    assert torch.equal(attention.heatmap("user"), attention.heatmap(token))


@pytest.mark.parametrize("name", ["sd", "pixart_sigma", "flux", "z_image", "sd3"])
def test_chinese_and_emoji_are_words(name: str) -> None:
    attention = traced(name, "a 红猫 🐈 dog")
    assert [str(word) for word in attention.words] == ["a", "红", "猫", "🐈", "dog"] and attention.cut_off() == []
    for word in attention.words:
        assert attention.heatmap(word).max() > 0
    lacking = ["红", "猫", "🐈"] if name in ("pixart_sigma", "flux", "sd3") else []  # these T5 have no bytes
    assert attention.recording.settings["unknown_words"] == sorted(lacking)


def test_learnt_tokens_are_one_word() -> None:
    attention = traced("sd_textual_inversion", "a <disc> and a dog")
    assert [(str(word), word.tokens) for word in attention.words][1:3] == [("disc", (2, 3)), ("and", (4,))]
    both = attention.heatmap(2) + attention.heatmap(3)
    torch.testing.assert_close(attention.heatmap("disc"), both)


@pytest.mark.parametrize("name", ["sd", "z_image", "flux_true_cfg"])
def test_the_callers_lists_stay_as_they_are(name: str) -> None:
    prompts, negatives = [PROMPT, TWIN], ["low quality", "low"]
    attention = traced(name, prompts, 0, 1, negative_prompt=negatives)
    assert prompts == [PROMPT, TWIN] == attention.prompts and negatives == ["low quality", "low"]


# What is recorded


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_steps_and_heads_are_kept_apart_or_averaged(name: str) -> None:
    mean, step, head, full = (traced(name, keep=keep) for keep in ("mean", "step", "head", "full"))
    for layer in mean.layers:
        heads = range(mean.recording.heads[layer])
        apart = torch.stack([torch.stack([full.maps(layer, step=s, head=h) for h in heads]) for s in (0, 1)])
        torch.testing.assert_close(mean.maps(layer), apart.mean(dim=(0, 1)), **CLOSE)
        for s in (0, 1):
            torch.testing.assert_close(step.maps(layer, step=s), apart[s].mean(dim=0), **CLOSE)
        for h in heads:
            torch.testing.assert_close(head.maps(layer, head=h), apart[:, h].mean(dim=0), **CLOSE)
    assert mean.steps == head.steps == [] and step.steps == full.steps == [0, 1]
    assert not torch.allclose(step.maps(mean.layers[0], step=0), step.maps(mean.layers[0], step=1), atol=1e-4)


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_chosen_words_and_layers_alone_are_recorded(name: str) -> None:
    whole, pattern = traced(name), "*transformer_blocks.1.*"
    with trace(pipeline(name), "step", words=["circle", "blue square"], layers=[pattern]) as chosen:
        draw(pipeline(name), name)
    assert chosen.layers == [layer for layer in whole.layers if ".1.attn" in layer] != whole.layers
    named = [PADDING, PICTURE] if name == "flux" else [PADDING]
    tokens = [re.sub("</w>|▁", "", token) for token in chosen.tokens_of(0)]
    assert tokens == ["circle", "blue", "square", *named, SPECIAL, OTHER]
    assert chosen.columns_of() == [SPECIAL, *named, OTHER] and whole.columns_of() == [SPECIAL, *named]
    assert [str(word) for word in chosen.words] == ["circle", "blue", "square"]
    for layer in chosen.layers:
        assert torch.allclose(chosen.maps(layer).sum(dim=0), torch.ones(()), atol=1e-5)
        for phrase in ("circle", "blue square", *chosen.columns_of()[:-1]):
            found = chosen.heatmap(phrase, layer=layer, step=1)
            torch.testing.assert_close(found, whole.heatmap(phrase, layer=layer, step=1), **CLOSE)
        for phrase in ("circle", OTHER):  # all other words are text
            own = chosen.heatmap(phrase, layer=layer, of="text")
            others = whole.heatmap("a red", layer=layer, of="text") + whole.heatmap("left of a", layer=layer, of="text")
            expected = others if phrase == OTHER else whole.heatmap(phrase, layer=layer, of="text")
            torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="'red' is not in the prompt; its words are: circle, blue, square"):
        chosen.heatmap("red")


def test_chosen_words_may_be_in_some_of_the_prompts() -> None:
    prompts, name = [PROMPT, "a photo of a dog"], "flux"
    whole = traced(name, prompts, 0, 1)
    with trace(pipeline(name), words=["circle", "dog"]) as chosen:
        draw(pipeline(name), name, prompts, 0, 1)
    for image, word in enumerate(("circle", "dog")):
        assert [str(word) for word in chosen.words_of(image)] == [word]
        assert torch.allclose(chosen.maps(chosen.layers[0], image=image).sum(dim=0), torch.ones(()), atol=1e-5)
        torch.testing.assert_close(chosen.heatmap(word, image=image), whole.heatmap(word, image=image), **CLOSE)


@pytest.mark.parametrize(
    ("name", "named"), [("sdxl", [PADDING]), ("z_image", [PADDING, PICTURE]), ("flux", [PADDING, PICTURE])]
)
def test_shares_of_the_text_alone_leave_everything_else_out(name: str, named: list[str]) -> None:
    attention = traced(name, "a red circle, left of a square!")
    assert attention.columns_of() == [SPECIAL, *named]
    tokens = [re.sub("</w>|[▁Ġ]", "", token) for token in attention.tokens_of(0)]
    special = attention.recording.texts["prompt"][0].special
    kept = [token for i, token in enumerate(tokens) if i not in special and token not in named]
    assert kept == ["a", "red", "circle", ",", "left", "of", "a", "square", "!"]  # punctuation is text
    sinks = [i for i, token in enumerate(tokens) if i in special or token in named]
    text_of = [i for i in range(len(tokens)) if i not in sinks]
    for layer in attention.layers:
        everything, text = attention.maps(layer), attention.maps(layer, of="text")
        assert (text[sinks] == 0).all() and everything[special, :].mean() > 0
        torch.testing.assert_close(text.sum(dim=0), torch.ones(text.shape[1:]), rtol=0, atol=1e-5)
        torch.testing.assert_close(text[text_of], everything[text_of] / everything[text_of].sum(dim=0))
    torch.testing.assert_close(attention.dropped(), sum(attention.heatmap(column) for column in attention.columns_of()))
    shares = dict(attention.words_at((0, 0, 96, 64), of="text"))
    assert all(share < shares[word] for word, share in attention.words_at((0, 0, 96, 64)))
    words = torch.stack([attention.heatmap(word) for word in attention.words])
    assert torch.equal(attention.segmentation(), words.argmax(dim=0))  # all else does not count


@pytest.mark.parametrize("name", ["z_image", "flux2_klein", "krea2"])
def test_the_tokens_of_a_template_are_special_also_where_it_says_a_word_of_the_prompt(name: str) -> None:
    attention = traced(name, "a user")
    tokens = [re.sub("[▁Ġ]", "", token) for token in attention.tokens_of(0)]
    special = [tokens[i] for i in attention.recording.texts["prompt"][0].special]
    assert "assistant" in "".join(special) and len(special) > 4
    words = {token for word in attention.words for token in word.tokens}
    assert {tokens[token] for token in words} == {"a", "user"}
    assert not words & set(attention.recording.texts["prompt"][0].special)


@pytest.mark.parametrize("name", ["sdxl", "flux_true_cfg"])
def test_a_saved_trace_answers_as_it_did(name: str, tmp_path: Path) -> None:
    attention = traced(name, keep="full", negative_prompt="low quality")
    attention.save(tmp_path / "trace.safetensors")
    loaded = AttentionTrace.load(tmp_path / "trace.safetensors")
    assert loaded.recording == attention.recording and torch.equal(loaded.pictures, attention.pictures)
    assert loaded.layers == attention.layers and loaded.columns_of() == attention.columns_of()
    for which in ({}, {"of": "text"}, {"layer": attention.layers[1], "head": 1, "step": 1}):
        torch.testing.assert_close(loaded.heatmap("circle", **which), attention.heatmap("circle", **which), **HALF)
    torch.testing.assert_close(
        loaded.heatmap("low", branch="negative"), attention.heatmap("low", branch="negative"), **HALF
    )
    torch.testing.assert_close(loaded.dropped(), attention.dropped(), **HALF)


@pytest.mark.parametrize(
    ("name", "samples", "height", "width"),
    [("pixart_sigma", 32, 60, 400), ("pixart_sigma", 32, 330, 51), ("sana", 16, 100, 170)],
)
def test_maps_go_the_way_of_a_picture_that_is_resized_and_cropped(
    name: str, samples: int, height: int, width: int, tmp_path: Path
) -> None:
    """Resolution binning draws a picture of another ratio, and cuts its middle out."""
    pipe = FAMILIES[name].build()
    pipe.transformer.register_to_config(sample_size=samples)  # this decides which sizes it knows
    changed: list[float] = []

    def change(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Change an eighth of each side, up on the right, of what is drawn."""
        latents = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        h, w = latents.shape[-2:]
        latents[..., 3 * h // 8 : h // 2, 5 * w // 8 : 3 * w // 4] += 8 * changed[0]

    pipe.transformer.register_forward_pre_hook(change, with_kwargs=True)
    pictures, heats = [], []
    for size in (0.0, 1.0):
        changed[:] = [size]
        with trace(pipe) as attention:
            pictures.append(
                draw(pipe, name, height=height, width=width, use_resolution_binning=True, num_inference_steps=1)
            )
        heats.append(attention.heatmap("circle"))
    assert attention.size == (height, width) == heats[0].shape == pictures[0].shape[1:3]
    seen = [np.abs(pictures[1] - pictures[0])[0].mean(axis=-1), (heats[1] - heats[0]).abs().numpy()]
    centres = [centre_of(change) for change in seen]
    assert np.abs(np.subtract(*centres)).max() < 0.04, centres
    attention.save(tmp_path / "trace.safetensors")
    loaded = AttentionTrace.load(tmp_path / "trace.safetensors")
    torch.testing.assert_close(loaded.heatmap("circle"), heats[1], **HALF)


def centre_of(change: np.ndarray) -> list[float]:
    """The place of a change, in parts of the height and the width."""
    weight = np.clip(change - np.median(change), 0, None) ** 2
    return [
        float((weight.sum(axis=1 - axis) * np.linspace(0, 1, weight.shape[axis])).sum() / weight.sum())
        for axis in (0, 1)
    ]


@pytest.mark.parametrize(
    ("name", "scheduler", "steps"),
    [
        ("sd", diffusers.HeunDiscreteScheduler, 4),
        ("sd", diffusers.PNDMScheduler, 7),  # three of its steps have a time of their own between them
        ("sd3", diffusers.FlowMatchHeunDiscreteScheduler, 4),
    ],
)
def test_the_first_pass_of_a_repeated_timestep_counts(name: str, scheduler: Any, steps: int) -> None:
    pipe = FAMILIES[name].build()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    passes: list[float] = []

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        passes.append(float(kwargs["timestep"].flatten()[0] if "timestep" in kwargs else args[1]))

    hook = pipe.unet if name == "sd" else pipe.transformer
    hook.register_forward_pre_hook(note, with_kwargs=True)
    plain = draw(pipe, name, num_inference_steps=4)
    with trace(pipe, "step") as attention:
        np.testing.assert_array_equal(draw(pipe, name, num_inference_steps=4), plain)
    assert len(passes) / 2 > len(set(passes)) == attention.recording.steps == steps
    assert attention.steps == list(range(steps))
    with trace(pipe) as mean:
        draw(pipe, name, num_inference_steps=4)
    for layer in mean.layers:
        apart = torch.stack([attention.maps(layer, step=step) for step in range(steps)])
        torch.testing.assert_close(mean.maps(layer), apart.mean(dim=0), **CLOSE)
