"""Concepts that stand beside the prompt of a diffusers pipeline: they are read, and never written.

After each pass of the denoiser that is recorded, it runs again with the concepts' tokens after those of the text. In
every attention that reads text, the picture's shares of all keys are recorded. Then the text and the picture get what
they get without the concepts, and in joint attention the concepts get what they read of the picture and of each other,
as in ConceptAttention (arXiv 2502.04320). So the second pass draws what the first one did, which is checked.

Shapes: B rows of the batch, H heads, L queries, S keys, T tokens of the text, C of the concepts, D width of the text.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from pipelines.tracing.families import LAYOUTS, Place
from pipelines.tracing.kernels import Fused
from pipelines.tracing.provenance import Provenance


@dataclass(frozen=True)
class Concept:
    """The name of what may be in a picture, as the text encoders read it as a prompt of its own.

    tokens: those of its name, as the tokenizer spells them. states: what a denoiser's text has for each, (C, D).
    """

    name: str
    tokens: tuple[str, ...]
    states: Tensor


def check_readable(denoiser: nn.Module) -> None:
    """Raise ValueError unless concepts can stand beside this denoiser's text."""
    known = sorted(name for name, layout in LAYOUTS.items() if layout.longer is not None)
    if type(denoiser).__name__ not in known:
        kind = type(denoiser).__name__
        raise ValueError(f"{kind} cannot read concepts beside its prompt; those that can are: {', '.join(known)}")


def encode_concept(pipe: DiffusionPipeline, name: str, arguments: Mapping[str, Any], read: Provenance) -> Concept:
    """Let a pipeline encode a name as it encodes prompts.

    Args:
        arguments: of the call that will be recorded; those that `encode_prompt` knows too, such as
            "max_sequence_length", are its own.
        read: notes what the text encoders read meanwhile.

    Raises:
        ValueError: it has no `encode_prompt`, or that gives nothing which its text encoders gave.
    """
    encode = getattr(pipe, "encode_prompt", None)
    if encode is None:
        raise ValueError(f"{type(pipe).__name__} cannot read concepts: it has no encode_prompt")
    ours = {"device": pipe._execution_device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    given: dict[str, Any] = {}
    for parameter in inspect.signature(encode).parameters:
        if parameter in ("prompt", "prompt_2", "prompt_3"):
            given[parameter] = [name]
        elif parameter in ours:
            given[parameter] = ours[parameter]
        elif parameter in arguments and "prompt" not in parameter:
            given[parameter] = arguments[parameter]
    states = encode(**given)
    while not isinstance(states, Tensor) or states.ndim > 2:  # the first of several results, the only one of a batch
        states = states[0]
    ((_, row),) = read.rows([[states]])
    text, columns = read.text("prompt", row, ())
    if not text.own:
        raise ValueError(f"{type(pipe).__name__} cannot read concepts: what it makes of {name!r} is not known")
    chosen = [columns[i] for i in text.own]
    return Concept(name, tuple(text.tokens[i] for i in text.own), states[chosen])


def with_concepts(
    denoiser: nn.Module, args: tuple, kwargs: Mapping[str, Any], concepts: Sequence[Concept]
) -> dict[str, Any]:
    """The arguments of a pass, by name, with the concepts' tokens after those of its text.

    Raises:
        ValueError: its texts are not of one length.
    """
    kind = type(denoiser)
    layout = LAYOUTS[kind.__name__]
    arguments = dict(inspect.signature(kind.forward).bind_partial(denoiser, *args, **kwargs).arguments)
    del arguments[next(iter(arguments))]  # the denoiser
    (name,), states = layout.text, torch.cat([concept.states for concept in concepts])
    text = arguments[name]  # (B, T, D)
    arguments[name] = torch.cat([text, states.to(text).expand(len(text), -1, -1)], dim=1)
    for other, longer in (layout.longer or {}).items():
        if arguments.get(other) is not None:
            arguments[other] = longer(arguments[other], text.shape[1], len(states))
    return arguments


def unwritten(kernel: Fused, place: Place, lengths: Sequence[int], count: int, is_joint: bool) -> Tensor:
    """What a kernel gives if the last `count` tokens of the text are read by themselves only, (B, H, L, any).

    Args:
        lengths: T + C, the number of text keys of each row.
        is_joint: whether text and picture are one sequence, so that concepts are queries, too: they read the picture
            and each other.

    Raises:
        ValueError: the rows have their texts in different places.
    """
    if len({*place.keys}) != 1 or len({*lengths}) != 1:
        raise ValueError("concepts cannot stand beside texts that have different places among the keys")
    first, last = place.keys[0], place.keys[0] + lengths[0]
    keys = torch.arange(kernel.shape[2], device=kernel.device)
    is_concept = (last - count <= keys) & (keys < last)
    out = kernel.given_only(slice(None), ~is_concept)
    if is_joint:
        is_text = (first <= keys) & (keys < last - count)
        out[:, :, last - count : last] = kernel.given_only(slice(last - count, last), ~is_text)
    return out


def check_unchanged(kind: str, again: Any, before: Any) -> None:
    """Raise ValueError unless a second pass of a denoiser gave what the first one did, but for rounding."""
    again, before = (out[0] if not isinstance(out, Tensor) else out for out in (again, before))
    apart = float((again - before).abs().max() / before.abs().max().clamp_min(1e-12))
    if not apart <= max(8 * torch.finfo(before.dtype).eps, 1e-4):
        what = f"with them beside the prompt its prediction is another one, by {apart:.2g} of the largest value"
        raise ValueError(f"{kind} cannot read concepts: {what}")
