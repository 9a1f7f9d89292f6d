"""Traces as files: the means in fp16 and the pictures as safetensors, everything else as JSON in the file's header."""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unet_xattn.trace_plan import KEEP, Recording
from unet_xattn.words import OTHER, PADDING, PICTURE, Text, Word, is_index, shown

FORMAT, OLDER = "unet_xattn attention 5", ("unet_xattn attention 4", "unet_xattn attention 3")
"""The format that is written, and those that are read too: 4 did not say which tokens are no text, so all that belong
to no word count as such, punctuation too; 3 also had one number of heads for all layers."""

ROUNDING = 0.02
"""By how much the shares at a place may exceed 1: they come from fp16 or bf16."""

OUTPUT = "output|"
"""What the names of output-space maps begin with; those of shares are a branch, a step and a layer."""

Key = tuple[str, int, str]
"""Branch, step (-1 for all), layer."""


class Saved(NamedTuple):
    """What a file holds of a trace.

    counts: the number of passes in each mean.
    means: of the shares, (I, H, T, N). similar: those of output-space maps, (I, 1, T, N), if they were recorded.
    pictures: (I, height, width, 3).
    """

    recording: Recording
    keep: Collection[str]
    counts: Mapping[Key, int]
    means: Mapping[Key, Tensor]
    similar: Mapping[Key, Tensor]
    pictures: Tensor | None


def write_trace(path: str | Path, saved: Saved) -> None:
    """Write a trace."""
    header = {
        "recording": asdict(saved.recording),
        "keep": sorted(saved.keep),
        "counts": {_name(key): count for key, count in saved.counts.items()},
        "output": bool(saved.similar),
    }
    tensors = {_name(key): mean for key, mean in saved.means.items()}
    tensors |= {OUTPUT + _name(key): mean for key, mean in saved.similar.items()}
    tensors = {name: mean.half().contiguous().cpu() for name, mean in tensors.items()}
    if saved.pictures is not None:
        tensors["pictures"] = saved.pictures.contiguous()
    save_file(tensors, path, metadata={"format": FORMAT, "trace": json.dumps(header, ensure_ascii=False)})


def read_trace(path: str | Path) -> Saved:
    """Read a trace.

    Raises:
        ValueError: the file is damaged or is not an attention trace.
        OSError: it cannot be opened.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors ({shown(error, 80)}): is it complete?") from error
    found = metadata.get("format")
    if found not in (FORMAT, *OLDER):
        raise ValueError(f"{path} is {found or 'not an attention trace'!r}, expected {FORMAT!r}")
    try:
        return _restored(json.loads(metadata["trace"]), tensors, (FORMAT, *OLDER).index(found))
    except Exception as error:  # nearly anything, where a header does not have the form that `write_trace` gave it
        raise ValueError(f"{path} is damaged: its parts do not fit each other ({shown(error, 80)})") from error


def _restored(header: dict[str, Any], tensors: Mapping[str, Tensor], age: int) -> Saved:
    """What a file's header and tensors hold; `age` counts the formats since. Raises anything unless a trace of it can
    answer every question.
    """
    recording, pictures = _recording(header["recording"], age), tensors.get("pictures")
    if not recording.is_whole() or not set(header["keep"]) <= set(KEEP):
        raise ValueError("the texts, sizes or counts of its header")
    counts = {_key(name): count for name, count in header["counts"].items()}
    means = {_key(name): tensors[name].float() for name in header["counts"]}
    has_output = age == 0 and header["output"]
    similar = {_key(name): tensors[OUTPUT + name].float() for name in header["counts"] if has_output}
    apart = any(mean.shape[1] > 1 for mean in means.values())  # heads that were not averaged
    single = dict.fromkeys(recording.heads, 1)
    _check_means(means, recording, recording.heads if apart else single)
    _check_means(similar, recording, single)
    if not means or not all(is_index(count, 2**31) and count > 0 for count in counts.values()):
        raise ValueError("the numbers of passes")
    shape = (len(recording.texts["prompt"]), *recording.size, 3)
    if pictures is not None and (pictures.dtype, tuple(pictures.shape)) != (torch.uint8, shape):
        raise ValueError("the pictures")
    return Saved(recording, header["keep"], counts, means, similar, pictures)


def _check_means(means: Mapping[Key, Tensor], recording: Recording, heads: Mapping[str, int]) -> None:
    """Raise ValueError unless these are means of this recording, with so many heads in each layer."""
    for (branch, _, layer), mean in means.items():
        expected = len(recording.texts[branch]), heads[layer], math.prod(recording.grids[layer])
        images, kept, tokens, positions = mean.shape
        if (images, kept, positions) != expected or tokens < recording.columns(branch):
            raise ValueError(f"the shape of {branch}, {layer}")
        if not (mean.min() >= 0 and mean.sum(dim=2).max() <= 1 + ROUNDING):  # not NaN either
            raise ValueError(f"the shares of {branch}, {layer}")


def _recording(saved: dict[str, Any], age: int) -> Recording:
    texts = {branch: [_text(text, age) for text in texts] for branch, texts in saved["texts"].items()}
    grids = {layer: tuple(grid) for layer, grid in saved["grids"].items()}
    heads = saved["heads"] if age < 2 else dict.fromkeys(grids, saved["heads"])
    drawn = tuple(saved["drawn"]) if saved.get("drawn") else None
    changed = {"texts": texts, "grids": grids, "heads": heads, "size": tuple(saved["size"]), "drawn": drawn}
    return Recording(**saved | changed)


def _text(saved: dict[str, Any], age: int) -> Text:
    words = tuple(Word(w["text"], w["start"], w["end"], tuple(w["tokens"])) for w in saved["words"])
    tokens = tuple(saved["tokens"])
    if age == 0:
        return Text(saved["text"], words, tokens, tuple(saved["special"]))
    of_words = {token for word in words for token in word.tokens}
    named = (PADDING, PICTURE, OTHER)
    special = (i for i, token in enumerate(tokens) if i not in of_words and token not in named)
    return Text(saved["text"], words, tokens, tuple(special))


def _name(key: Key) -> str:
    return "|".join(map(str, key))


def _key(name: str) -> Key:
    branch, step, layer = name.split("|")
    return branch, int(step), layer
