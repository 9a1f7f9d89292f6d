"""Maps against sets of pictures with masks, by the protocols of published comparisons.

A pipeline reads each picture with its caption (`tracing.attribute`). Everything is compared at the size at which it
reads the picture. Pixels that are void do not count.

"One object" (Chefer et al., arXiv 2012.09838, and ConceptAttention, arXiv 2502.04320): pictures of one thing; it is
where the map is above its own mean. "Several objects": all pictures; a pixel belongs to the thing whose map, relative
to its own mean, is largest there, or to the background where no map is above its mean. Pixel accuracy and the IoU of
each class count the pixels of all pictures; mIoU is the mean over classes, background included. mAP is the mean over
pictures of the average precision of a map and its complement.

The methods are those of `maps`, and ConceptAttention's: the names of the things and of the `BACKGROUND` are concepts,
and of several objects a pixel belongs to the concept whose map is largest.

Shapes: h×w pixels, N things of a picture, C classes, P pictures, R resamples.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from pipelines.evaluation.maps import RECORD, Reading, head, judge_map, lines, maps_of, recording_self, summary
from pipelines.sources.masked_files import Masked, MaskedFile
from pipelines.text_to_image import TextToImagePipeline
from pipelines.tracing.attribute import attribute
from pipelines.tracing.concepts import check_readable
from pipelines.tracing.watch import denoiser_of
from unet_xattn import AttentionTrace
from unet_xattn.grounding import average_precision
from unet_xattn.words import CONCEPTS, WORD, Word

LEVELS, DRAWS = (0.3, 0.5, 0.7), 2

BACKGROUND = ("background", "floor", "grass", "tree", "sky")
"""What ConceptAttention's measurements name beside the things of a picture."""

CONCEPT_METHODS = {"concepts": "mean", "concepts, output": "output"}
"""Name of a method -> how `AttentionTrace.heatmap` reduces the maps of concepts."""


class Regions(NamedTuple):
    """The words of a picture's things, their masks (N, h, w) bool, and where it is known what is there, (h, w) bool."""

    words: list[Word]
    masks: Tensor
    known: Tensor


class Maps(NamedTuple):
    """The maps of a picture's things by one method, (N, h, w), and those of its background: (any number, h, w)."""

    things: Tensor
    background: Tensor


class Counts(NamedTuple):
    """Pixels of one picture, by class: right ones, and those of either the thing or its prediction; (C,) each."""

    both: np.ndarray
    either: np.ndarray
    known: int


def read_masked_picture(
    pipe: DiffusionPipeline, masked: Masked, concepts: Sequence[str] = ()
) -> tuple[Reading, Regions]:
    """What the pipeline reads of a picture, and its regions at that size.

    Raises:
        ValueError: the caption cannot be read, or a thing's name was cut off.
    """
    named = list(dict.fromkeys(match.group() for match in WORD.finditer(masked.caption)))  # without padding
    with ExitStack() as stack:
        ours = isinstance(pipe, TextToImagePipeline)
        self_attention = stack.enter_context(recording_self(pipe.unet)) if ours else {}
        given = {"words": named, "concepts": concepts, **RECORD}
        attention = attribute(pipe, masked.picture, masked.caption, LEVELS, DRAWS, **given)
    words = [_word(attention, *span) for span in masked.spans]
    fitted = [_fitted(mask, attention.size) for mask in (*masked.masks, ~masked.void)]
    return Reading(attention, self_attention), Regions(words, torch.stack(fitted)[:-1], fitted[-1])


def _word(attention: AttentionTrace, start: int, end: int) -> Word:
    """The characters [start, end) of the caption as a word."""
    words = [word for word in attention.words if word.start < end and word.end > start]
    text = attention.prompts[0][start:end]
    if not words:
        raise ValueError(f"{text!r} was cut off: the caption is longer than the text encoder reads")
    return Word(text, start, end, tuple(sorted({token for word in words for token in word.tokens})))


def _fitted(mask: np.ndarray, size: tuple[int, int]) -> Tensor:
    """A mask (h, w) bool in the size of a reading, cropped as its picture was."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return torch.from_numpy(np.asarray(ImageOps.fit(picture, size[::-1], Image.Resampling.BOX)) >= 128)


def _concepts(pipe: DiffusionPipeline, masked: Masked) -> list[str]:
    """The concepts of a picture, its things first; none for a pipeline that cannot read concepts beside its prompt."""
    if not isinstance(pipe, TextToImagePipeline):
        try:
            check_readable(denoiser_of(pipe))
        except ValueError:
            return []
    things = [masked.caption[start:end] for start, end in masked.spans]
    known = {thing.casefold() for thing in things}
    return [*things, *(name for name in BACKGROUND if name not in known)]


def _maps(reading: Reading, regions: Regions) -> dict[str, Maps]:
    """Method -> the maps of a picture's things."""
    by_word, attention = [maps_of(reading, word) for word in regions.words], reading.attention
    nothing = torch.empty(0, *attention.size)
    found = {name: Maps(torch.stack([maps[name] for maps in by_word]), nothing) for name in by_word[0]}
    if CONCEPTS in attention.recording.texts:
        for name, reduce in CONCEPT_METHODS.items():
            concepts = attention.words_of(0, CONCEPTS)
            heats = torch.stack([attention.heatmap(word, branch=CONCEPTS, reduce=reduce) for word in concepts])
            found[name] = Maps(heats[: len(by_word)], heats[len(by_word) :])
    return found


def evaluate_masks(pipe: DiffusionPipeline, files: Sequence[MaskedFile]) -> dict[str, Any]:
    """Judge a pipeline's maps on a set of pictures with masks.

    Returns:
        {"settings", "one object", "several objects", "words"}, ready for JSON. The protocols hold for each method that
        has what it needs n, the number of pictures, and "accuracy", "iou" and for one object "ap" as [mean, low, high],
        with a 95 % interval of 1,000 bootstrap resamples of the pictures. "words" holds for each method the
        `maps.summary` of all things. Protocols without a picture are left out.

    Raises:
        ValueError: a picture cannot be read, or none has a thing.
    """
    counts: dict[str, dict[str, list[Counts]]] = {"one object": defaultdict(list), "several objects": defaultdict(list)}
    precisions: dict[str, list[float]] = defaultdict(list)
    rows: dict[str, list[list[float]]] = defaultdict(list)
    classes = ["background"]
    for file in tqdm(files, "pictures", disable=None):
        masked = file.load()
        if not masked.labels:
            continue
        try:
            reading, regions = read_masked_picture(pipe, masked, _concepts(pipe, masked))
        except ValueError as error:
            raise ValueError(f"{file.name}: {error}") from error
        classes += [label for label in dict.fromkeys(masked.labels) if label not in classes]
        numbers = np.array([classes.index(label) for label in masked.labels])
        for method, maps in _maps(reading, regions).items() if regions.known.any() else ():
            counts["several objects"][method].append(_several(maps, regions, numbers))
            if len(maps.things) == 1:
                counts["one object"][method].append(_one(maps.things[0], regions))
                precisions[method].append(_precision(maps.things[0], regions))
            for heat, mask in zip(maps.things, regions.masks, strict=True):
                if (mask & regions.known).any():
                    rows[method].append(judge_map(heat[regions.known][None], mask[regions.known][None].float()))
    if not rows:
        raise ValueError("none of the pictures has a thing in it")
    report: dict[str, Any] = {
        "settings": {"pictures": len(files), "classes": len(classes) - 1, "levels": list(LEVELS), "draws": DRAWS}
    }
    for protocol, by_method in counts.items():
        if by_method:
            report[protocol] = {method: _rates(found) for method, found in by_method.items()}
    for method, values in precisions.items():
        report["one object"][method]["ap"] = _resampled(np.array(values)[:, None], np.ones((len(values), 1)))
    report["words"] = {method: summary(found) for method, found in rows.items()}
    return report


def _one(heat: Tensor, regions: Regions) -> Counts:
    """Thing and background, where the thing is predicted above the map's mean."""
    return _counts((heat > heat.mean()).long(), regions.masks[0].long(), regions.known, 2)


def _several(maps: Maps, regions: Regions, numbers: np.ndarray) -> Counts:
    """Each pixel one class; where masks of several classes overlap it is void. numbers (N,), the things' classes."""
    of_thing = torch.from_numpy(numbers)
    if len(maps.background):
        is_thing = maps.things.amax(dim=0) > maps.background.amax(dim=0)
        thing = maps.things.argmax(dim=0)
    else:
        relative, thing = (maps.things / maps.things.mean(dim=(1, 2), keepdim=True).clamp_min(1e-12)).max(dim=0)
        is_thing = relative > 1
    predicted = torch.where(is_thing, of_thing[thing], 0)
    true = torch.where(regions.masks, of_thing[:, None, None], 0).amax(dim=0)
    agreed = (~regions.masks | (of_thing[:, None, None] == true)).all(dim=0)
    return _counts(predicted, true, regions.known & agreed, int(numbers.max()) + 1)


def _counts(predicted: Tensor, true: Tensor, known: Tensor, classes: int) -> Counts:
    a, b = predicted[known].numpy(), true[known].numpy()
    both, of_a, of_b = (np.bincount(x, minlength=classes) for x in (a[a == b], a, b))
    return Counts(both, of_a + of_b - both, len(a))


def _precision(heat: Tensor, regions: Regions) -> float:
    """Average precision of a map, scaled to [0, 1], for the thing, and of its complement for the background, as one."""
    heat, mask = heat[regions.known], regions.masks[0][regions.known].float()
    scaled = (heat - heat.min()) / (heat.max() - heat.min()).clamp_min(1e-12)
    ranked, true = torch.cat([1 - scaled, scaled]), torch.cat([1 - mask, mask])
    return float(average_precision(ranked[None, None, None], true[None, None, None]))


def _rates(counts: Sequence[Counts]) -> dict[str, Any]:
    """Pixel accuracy and mean IoU of pictures together."""
    classes = max(len(c.both) for c in counts)
    both, either = (
        np.array([np.pad(array, (0, classes - len(array))) for array in arrays])
        for arrays in ([c.both for c in counts], [c.either for c in counts])
    )  # (P, C)
    known = np.array([[c.known] for c in counts])
    accuracy = _resampled(both.sum(axis=1, keepdims=True), known)
    return {"n": len(counts), "accuracy": accuracy, "iou": _resampled(both, either)}


def _resampled(part: np.ndarray, whole: np.ndarray, resamples: int = 1000) -> list[float]:
    """Sum over pictures of the part over that of the whole, (P, C) each, as a mean over classes that occur.

    [mean, low, high], with the 95 % interval of resamples of the pictures. It is centred on the mean, because resamples
    lack rare classes.
    """
    rng, count = np.random.default_rng(0), len(part)
    times = rng.multinomial(count, np.full(count, 1 / count), size=resamples)  # (R, P)
    times = np.concatenate([np.ones((1, count), times.dtype), times])
    wholes = times @ whole  # (1 + R, C)
    rates = np.where(wholes > 0, times @ part / np.maximum(wholes, 1), np.nan)
    mean, *others = np.nanmean(rates, axis=1)
    return [float(mean), *(np.quantile(others, [0.025, 0.975]) - np.mean(others) + mean).clip(0, 1).tolist()]


def segmentation_table(report: Mapping[str, Any]) -> str:
    """The report of `evaluate_masks` as Markdown tables."""
    return "\n".join(_table(report))


def _table(report: Mapping[str, Any]) -> Iterator[str]:
    settings = report["settings"]
    read = f"read at noise {', '.join(map(str, settings['levels']))}"
    yield f"{settings['pictures']} pictures, {settings['classes']} classes, {read}; mean (95 % interval)."
    for protocol in ("one object", "several objects"):
        if protocol in report:
            yield from ("", f"| {protocol:26} | {'n':>4} | {'pixel accuracy':>16} | {'mIoU':>16} | {'mAP':>16} |")
            yield f"|:{'-' * 27}|{'-' * 5}:|" + f"{'-' * 17}:|" * 3
            for method, figures in report[protocol].items():
                given = [figures.get(key) for key in ("accuracy", "iou", "ap")]
                cells = [f"{f[0]:.3f} ({f[1]:.2f}–{f[2]:.2f})" if f else "" for f in given]
                yield f"| {method:26} | {figures['n']:>4} | " + " | ".join(f"{cell:>16}" for cell in cells) + " |"
    yield from ("", *head("things, by half the peak"), *lines(report["words"]))
