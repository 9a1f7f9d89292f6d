"""Learn how far each head of each layer can be trusted, from pictures with masks.

Shapes: K maps of one word (layers × heads), h×w pixels, n words, P pixels of the maps that are compared.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn import functional as F

from pipelines.evaluation.grounding import OBJECT_WORDS, read
from pipelines.evaluation.segmentation import read_masked_picture
from pipelines.scenes.worlds import WORLDS, world_of
from pipelines.sources.findings import DataError
from pipelines.sources.masked import read_masked, spread
from pipelines.sources.masked_files import MaskedFile
from pipelines.text_to_image import TextToImagePipeline
from unet_xattn import AttentionTrace
from unet_xattn.trace_plan import Calibration
from unet_xattn.words import Word

CALIBRATION_SEED = 1_414_213_562
"""The seed of the scenes for calibration; training, validation and testing use other seeds."""

FINEST, LARGEST = 64, 2**30
"""Pixels on a side of the maps that are compared, and bytes of all of them, at most."""

NEGLIGIBLE = 0.18
"""Weights below this share of the mean one become 0: the maps of such heads need not be computed."""


class Example(NamedTuple):
    """A word of a recording with heads kept apart, and its mask (h, w), below 0 where it is not known."""

    attention: AttentionTrace
    word: Word
    mask: Tensor


def calibrate(pipe: TextToImagePipeline, scenes: int = 100) -> Calibration:
    """Learn a `Calibration` for a model of scenes, on scenes that are used for nothing else."""
    world = WORLDS[world_of(pipe.tokenizer)]

    def examples() -> Iterator[Example]:
        for index in range(scenes):
            reading, words = read(pipe, world.scene(CALIBRATION_SEED, index))
            yield from (Example(reading.attention, w, mask) for kind, w, mask in words if kind in OBJECT_WORDS)

    return fit_calibration(examples())


def calibrate_on(pipe: DiffusionPipeline, files: Sequence[MaskedFile]) -> Calibration:
    """Learn a `Calibration` for any pipeline that can attribute, on pictures with masks.

    Raises:
        ValueError: a picture cannot be read, or none has a thing.
    """
    loaded = [file.load() for file in files]

    def examples() -> Iterator[Example]:
        for masked in loaded:
            reading, regions = read_masked_picture(pipe, masked)
            for word, mask in zip(regions.words, regions.masks, strict=True):
                if (mask & regions.known).any():
                    yield Example(reading.attention, word, torch.where(regions.known, mask.float(), -1.0))

    return fit_calibration(examples(), sum(len(masked.labels) for masked in loaded))


def apart(folder: str | os.PathLike, count: int) -> tuple[list[MaskedFile], list[MaskedFile]]:
    """Pictures of a set to learn from, and others to measure with, at most `count` each.

    They are of the splits for training and for validation. Of a set with one split, they alternate.

    Raises:
        DataError: as `read_masked`; or there are fewer than two pictures.
    """
    learn, measure = read_masked(folder, train=True), read_masked(folder)
    if {file.name for file in learn} & {file.name for file in measure}:
        learn, measure = measure[::2], measure[1::2]
    if not measure:
        raise DataError(f"{folder} has one picture with masks: to learn from some and measure with others takes more")
    return spread(learn, count), spread(measure, count)


def fit_calibration(examples: Iterable[Example], words: int = 0, steps: int = 100) -> Calibration:
    """Learn a `Calibration`: the weights of layers and heads, with sum 1, whose maps overlap the masks most.

    Args:
        words: the number of examples, if it is so large that the maps may have to be reduced to fit into memory.

    Raises:
        ValueError: there are no examples, or their layers differ.
    """
    maps: list[Tensor] = []
    masks: list[Tensor] = []
    heads: dict[str, int] = {}
    for attention, word, mask in examples:
        heads = heads or {layer: attention.recording.heads[layer] for layer in attention.layers}
        if list(heads) != attention.layers:
            raise ValueError("a calibration is learnt from recordings of the same layers: record all layers")
        side = min(FINEST, int(math.sqrt(LARGEST / (4 * sum(heads.values()) * max(words, 1)))))
        known = _reduced((mask >= 0).float(), side) > 0.5
        every = (attention.heatmap(word, layer=layer, head=h) for layer, count in heads.items() for h in range(count))
        maps.append(torch.stack([_reduced(heat, side) * known for heat in every]))  # (K, P)
        masks.append((_reduced(mask.clamp_min(0), side) * known >= 0.5).float())
    if not maps:
        raise ValueError("a calibration is learnt from words with masks, and there are none")
    weights = iter(_fit_weights(torch.stack(maps), torch.stack(masks), steps).tolist())
    return {layer: [round(next(weights), 6) for _ in range(count)] for layer, count in heads.items()}


def _reduced(x: Tensor, side: int) -> Tensor:
    """(h, w) -> (side · side,). Their ratio is lost, which changes no overlap."""
    return F.interpolate(x[None, None].float(), (side, side), mode="area").flatten()


def _fit_weights(maps: Tensor, masks: Tensor, steps: int) -> Tensor:
    """Weights (K,) of the maps (n, K, P) for the masks (n, P).

    The loss is 1 − IoU of the mask and the region above half the map's peak, with a soft edge instead of a threshold.
    """
    logits = torch.zeros(maps.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.1)
    for _ in range(steps):
        heat = torch.einsum("k,nkp->np", logits.softmax(dim=0), maps)
        inside = ((heat / heat.amax(dim=1, keepdim=True).clamp_min(1e-12) - 0.5) / 0.05).sigmoid()
        both = inside * masks
        overlap = both.sum(dim=1) / (inside + masks - both).sum(dim=1)
        optimizer.zero_grad()
        (1 - overlap.mean()).backward()
        optimizer.step()
    weights = logits.detach().softmax(dim=0)
    weights = torch.where(weights < NEGLIGIBLE / len(weights), 0, weights)
    return weights / weights.sum()
