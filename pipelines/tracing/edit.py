"""Edits of the pictures that a pipeline draws: ours, or any of diffusers' that can be recorded."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers import DiffusionPipeline

from pipelines.edit_plan import STRENGTH
from pipelines.edited import active_edits
from pipelines.edits import Edit, read_edits
from pipelines.text_to_image import TextToImagePipeline
from pipelines.tracing.attribute_any import native_size
from pipelines.tracing.call import EditsOfText
from pipelines.tracing.capture import trace
from pipelines.tracing.watch import Edits, denoiser_of, watched
from unet_xattn import AttentionTrace
from unet_xattn.bias import NEVER, Bias
from unet_xattn.excite import Excited
from unet_xattn.grounding import region_mask
from unet_xattn.words import Text, find_phrase

ANY = ("reweight", "paint", "pin", "excite")
"""Kinds of edits that are made of any pipeline; `withhold` is a weight of 0."""


@contextmanager
def edit(pipe: DiffusionPipeline, *edits: Edit, keep: str | Collection[str] = "mean") -> Iterator[AttentionTrace]:
    """Make these edits of each picture that `pipe` draws in this block, and record what was read.

        with edit(pipe, reweight("red", 2.0)) as attention:
            image = pipe("a red circle left of a blue square").images[0]

    Our own pipeline draws each picture twice, see its argument `edits`. Those of diffusers draw it once: they can
    reweight and withhold words, paint and pin them in regions, and excite them. Another prompt is given to them as
    such; pinned to the masks of a first trace, words stay where they were. Noise levels are 1 − step / steps there.

    Raises:
        ValueError: the pipeline cannot be recorded, or an edit not made of its pictures.
    """
    if isinstance(pipe, TextToImagePipeline):
        token = active_edits.set((*active_edits.get(), (pipe, edits)))
        try:
            with trace(pipe, keep) as attention:
                yield attention
        finally:
            active_edits.reset(token)
        return
    for one in edits:
        if isinstance(one, Edit) and (one.kind not in ANY or (one.kind == "pin" and one.value is None)):
            raise ValueError(
                f"{type(pipe).__name__} draws a picture once, without {one.kind} of {one.word!r}: give it the other "
                "prompt, and pin words to the masks of a first trace, pin(word, attention.mask(word))"
            )
    layers = {name: 2**14 for name, module in denoiser_of(pipe).named_modules() if hasattr(module, "processor")}
    (wanted,) = read_edits(list(edits), 1, layers)
    attention = AttentionTrace(keep)
    excites = any(one.kind == "excite" for one in wanted)
    made = Edits(lambda arguments: _of_text(wanted, _size(pipe, arguments)), excites)
    with watched(pipe, attention, edits=made):
        yield attention


def _size(pipe: DiffusionPipeline, arguments: Mapping[str, Any]) -> Callable[[], tuple[int, int]]:
    """Height and width of the pictures of a call with these arguments."""
    given = arguments.get("height"), arguments.get("width")
    return lambda: tuple(side or native_size(pipe)[0] for side in given)  # type: ignore[return-value]


def _of_text(edits: Sequence[Edit], size: Callable[[], tuple[int, int]]) -> EditsOfText:
    def of_text(text: Text) -> tuple[list[Bias], list[Excited]]:
        biases: list[Bias] = []
        excited: list[Excited] = []
        for one in edits:
            tokens = find_phrase(one.word, text.text, text.words)
            where: dict[str, Any] = {"layers": one.layers, "heads": one.heads, "noise": one.noise}
            if one.kind == "excite":
                excited.append(Excited(tokens, **where))
            elif one.kind == "reweight":
                biases.append(Bias(tokens, math.log(one.value) if one.value else NEVER, **where))
            else:
                region = one.value if getattr(one.value, "ndim", 0) == 2 else region_mask(one.value, size())
                biases.append(Bias(tokens, STRENGTH, -STRENGTH, region, **where))
        return biases, excited

    return of_text
