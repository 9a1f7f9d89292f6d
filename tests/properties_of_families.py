"""What is true of a recorded pipeline of any family, found by changing one thing of a call and comparing.

Shapes: B rows of the batch, H heads, L tokens, G columns of the text, h×w a layer's grid.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache
from typing import Any

import numpy as np
import torch
from families_of_pipelines import Deviations, all_of, denoiser_of, expected
from tiny_pipelines import pipeline
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipelines.tracing.watch import watched
from unet_xattn import AttentionTrace

# Recording

Disturbance = Callable[[str], list[RemovableHandle]]


def record(
    name: str, *disturbances: Disturbance, check: Deviations | None = None, **changes: Any
) -> tuple[AttentionTrace, np.ndarray]:
    """The trace, with heads and steps kept apart, and the pictures of a call in which something is disturbed."""
    attention, pipe = AttentionTrace("full"), pipeline(name)
    with ExitStack() as hooks:
        for disturb in disturbances:  # before those of the trace, so that it sees what the denoiser sees
            for handle in disturb(name):
                hooks.callback(handle.remove)
        with watched(pipe, attention, check):
            pictures = all_of(name).draw(pipe, all_of(name).prompts[0], **changes)
    return attention, pictures


@cache
def undisturbed(name: str) -> tuple[AttentionTrace, np.ndarray, Deviations]:
    """The trace and the pictures of the family's own call, and how its kernels deviate."""
    found = Deviations()
    return (*record(name, check=found), found)


def first_maps(attention: AttentionTrace, branch: str = "prompt") -> Tensor:
    """What the first layer reads in the first step, where everything before it is known: (H, G, h, w)."""
    layer, columns = attention.layers[0], len(attention.recording.texts[branch][0].tokens)
    heads = range(attention.recording.heads[layer])
    return torch.stack([attention.maps(layer, step=0, head=head, branch=branch)[:columns] for head in heads])


def word_of(name: str) -> str:
    """The word of a family's prompt whose encoding is changed."""
    return "circle" if "circle" in all_of(name).prompts[0] else "dog"


# Disturbances


def change_word(name: str) -> list[RemovableHandle]:
    """Change what the text encoders give at the tokens of `word_of`, and nothing else."""
    pipe, handles = pipeline(name), []
    for part, encoder in pipe.components.items():
        if part.startswith("text_encoder") and encoder is not None:
            tokenizer = getattr(pipe, part.replace("text_encoder", "tokenizer"))
            handles.append(encoder.register_forward_hook(_word_changer(tokenizer, word_of(name)), with_kwargs=True))
    return handles


def _word_changer(tokenizer: Any, word: str) -> Callable[..., None]:
    def change(encoder: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        where = torch.tensor([_spelled(tokenizer, row, word) for row in ids.tolist()])  # (B, L)
        states = {state.data_ptr(): state for state in _tensors(out) if state.ndim == 3}  # the last is there twice
        for state in states.values():
            for place in (where, where.T):  # ChatGLM has the tokens first
                if state.shape[:2] == place.shape and state.is_floating_point():
                    noise = torch.randn(state.shape[-1], generator=torch.Generator().manual_seed(1))
                    state[place] += (3 * state.std() * noise).to(state.dtype)
                    break

    return change


def _spelled(tokenizer: Any, ids: list[int], word: str) -> list[bool]:
    """For each id whether it is the word, or a part of it, by what the ids spell."""
    pieces = [tokenizer.decode([i]).strip().lower() for i in ids]
    found = [False] * len(ids)
    for start in range(len(ids)):
        for end in range(start + 1, len(ids) + 1):
            spelled = "".join(pieces[start:end])
            if spelled == word and pieces[start]:
                found[start:end] = [True] * (end - start)
            if not word.startswith(spelled):
                break
    return found


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, Mapping | list | tuple):
        for part in out.values() if isinstance(out, Mapping) else out:
            yield from _tensors(part)


PLACE = (5 / 8, 3 / 12)
"""The place of the patch that is changed, in parts of the height and the width."""


def change_patch(name: str) -> list[RemovableHandle]:
    """Change one patch of the latents that the denoiser gets in its first pass."""
    denoiser, grid = denoiser_of(name), max(expected(name).layers.values())

    def change(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        handle.remove()
        given = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
        latents = next(given[x] for x in ("sample", "hidden_states", "x") if x in given)
        for picture in latents:
            _change_patch_of(picture, grid)
        return args, kwargs

    handle = denoiser.register_forward_pre_hook(change, with_kwargs=True)
    return [handle]


def _change_patch_of(picture: Tensor, grid: tuple[int, int]) -> None:
    """Change the patch at `PLACE` of latents (C, ..., h, w), (frames, h, w, C) or packed (N, C), in place."""
    y, x = int(PLACE[0] * grid[0]), int(PLACE[1] * grid[1])
    if picture.ndim == 2:
        patch = picture[y * grid[1] + x]
    else:
        picture = picture.movedim(-1, 0) if picture.ndim == 4 and picture.shape[0] == 1 else picture
        size = picture.shape[-1] // grid[1]
        patch = picture[..., size * y : size * (y + 1), size * x : size * (x + 1)]
    patch += 5 * torch.randn(patch.shape, generator=torch.Generator().manual_seed(2))


def keep_picture() -> Disturbance:
    """A disturbance that lets the first layer get the same of the picture in each call: that of the first one."""
    kept: list[Tensor] = []

    def disturb(name: str) -> list[RemovableHandle]:
        def change(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            handle.remove()
            kept.append((kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]).clone())
            if "hidden_states" in kwargs:
                return args, kwargs | {"hidden_states": kept[0]}
            return (kept[0], *args[1:]), kwargs

        layer = denoiser_of(name).get_submodule(next(iter(expected(name).layers)))
        handle = layer.register_forward_pre_hook(change, with_kwargs=True)
        return [handle]

    return disturb


# Properties


class FamilyProperties:
    """Tests for a class whose tests get names of families or variants."""

    def test_pictures_are_the_same_bit_for_bit(self, name: str) -> None:
        plain = all_of(name).draw(pipeline(name), all_of(name).prompts[0])
        attention, pictures, _ = undisturbed(name)
        np.testing.assert_array_equal(pictures, plain)
        assert attention.size == pictures.shape[1:3]
        np.testing.assert_array_equal(attention.pictures.numpy(), (pictures * 255).round().astype(np.uint8))

    def test_every_layer_that_reads_text_is_recorded_with_its_grid(self, name: str) -> None:
        attention, _, found = undisturbed(name)
        assert dict(attention.recording.grids) == expected(name).layers
        assert attention.layers == list(expected(name).layers)
        assert attention.recording.heads == found.heads

    def test_shares_are_those_of_an_explicit_softmax_and_add_up_to_one(self, name: str) -> None:
        """To 8 eps, times the root of the number of keys: fp32 is added up in fp32, and where hundreds of keys of
        padding are one column, their roundings add up.
        """
        attention, _, found = undisturbed(name)
        assert max(found.rows, found.shares, found.outputs) < 8 * math.sqrt(found.keys)
        for layer in attention.layers:
            for branch in attention.recording.texts:
                torch.testing.assert_close(
                    attention.maps(layer, branch=branch).sum(dim=0), torch.ones(expected(name).layers[layer]), **CLOSE
                )

    def test_words_are_the_columns_that_their_encodings_reach(self, name: str) -> None:
        same = [keep_picture()] if expected(name).pools else []
        attention = record(name, *same)[0] if same else undisturbed(name)[0]
        before, after = first_maps(attention), first_maps(record(name, *same, change_word)[0])
        own = list(next(word.tokens for word in attention.words if word.text == word_of(name)))
        if expected(name).mixes:
            moved = (after - before).abs().mean(dim=(0, 2, 3))
            of_words = {word.text: float(moved[list(word.tokens)].sum()) for word in attention.words}
            assert max(of_words, key=of_words.__getitem__) == word_of(name)
            return
        # A softmax divides by a sum: one score that changes leaves the ratios of all other shares as they are.
        ratio = (after.double() / before.double()).log()
        is_seen = (before > 1e-3) & (after > 1e-3)
        is_seen[:, own] = False
        assert (is_seen.sum(dim=1) > 1).float().mean() > 0.5
        middle = torch.where(is_seen, ratio, torch.nan).nanmean(dim=1, keepdim=True)
        assert torch.where(is_seen, ratio - middle, 0.0).abs().max() < 1e-4
        assert (ratio - middle)[:, own].nan_to_num().abs().amax(dim=(1, 2, 3)).min() > 0.3

    def test_a_change_in_the_latents_is_seen_at_its_place(self, name: str) -> None:
        moved = first_maps(record(name, change_patch)[0]) - first_maps(undisturbed(name)[0])
        change = moved.abs().sum(dim=(0, 1))  # (h, w)
        if not expected(name).blurs:
            found = divmod(int(change.argmax()), change.shape[1])
            assert found == (PLACE[0] * change.shape[0], PLACE[1] * change.shape[1])
            return
        weight = (change - change.median()).clamp_min(0) ** 2
        for axis, place in enumerate(PLACE):
            centres = (torch.arange(change.shape[axis]) + 0.5) / change.shape[axis]
            assert abs(float(weight.sum(dim=1 - axis) @ centres / weight.sum()) - place) < 1 / 8

    def test_the_negative_prompt_is_a_branch_of_its_own(self, name: str) -> None:
        attention, _, _ = undisturbed(name)
        assert set(attention.recording.texts) == ({"prompt", "negative"} if expected(name).negative else {"prompt"})
        if not expected(name).negative:
            return
        if "negative_prompt" not in inspect.signature(type(pipeline(name)).__call__).parameters:
            assert attention.words_of(0, "negative") == []
            return
        given = '"low" quality', 'a photo of a "dog"'  # GLM-Image reads what is quoted
        one, other = (record(name, negative_prompt=text)[0] for text in given)
        for trace, text in zip((one, other), given, strict=True):
            assert [text.text for text in trace.recording.texts["negative"]] == [text]
        assert str(one.words_of(0, "negative")[0]) == "low" and str(other.words_of(0, "negative")[-1]) == "dog"
        torch.testing.assert_close(first_maps(one), first_maps(other), **CLOSE)
        own = [first_maps(trace, "negative")[:, :4] for trace in (one, other)]
        assert not torch.allclose(*own, rtol=0.1, atol=1e-4)


CLOSE = {"rtol": 0, "atol": 2e-5}
