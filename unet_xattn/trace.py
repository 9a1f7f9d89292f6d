"""The attention of a pipeline's cross-attention layers while it drew a picture, and questions about it.

Shapes: a heat map has the picture's own height and width.
"""

import math
from contextlib import suppress
from numbers import Real
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import Unpack

from unet_xattn.grounding import Measures, Region, measure, region_mask
from unet_xattn.trace_cells import TraceCells
from unet_xattn.trace_file import Saved, read_trace, write_trace
from unet_xattn.trace_maps import Selection
from unet_xattn.words import CONCEPTS, SPECIAL, Word, shown

LEAST = 0.1
"""By how much a concept's map must exceed its own lowest tenth, where it is in the picture. Found on scenes of `shapes`
and `emoji`, see the README of pipelines/tracing."""


class AttentionTrace(TraceCells):
    """A recording, and questions about it. A pipeline records into it, see `TraceRecorder`, whose arguments it has."""

    def dropped(self, *, image: int = 0, **which: Unpack[Selection]) -> Tensor:
        """The share that `of="text"` leaves out: (height, width) float32.

        It is that of start, end and template tokens, of the padding, and of the picture's own positions. `heatmap` has
        that of each of them, by its name in `columns_of`.
        """
        given: Selection = {**which, "of": "all"}
        sinks = self._sinks(image, which.get("branch", "prompt"))
        return self.heatmaps(sinks, image=image, **given).sum(dim=0).clamp(0, 1)

    def mask(
        self,
        word: str | int | Word,
        *,
        image: int = 0,
        occurrence: int = 0,
        least: float = LEAST,
        **which: Unpack[Selection],
    ) -> Tensor:
        """The outline of what a word drew: bool (height, width), where its refined map is at least half its peak.

        By default the map is "calibrated" where that can be had. It holds the picture's edges as well as the attention.

        A concept may not be in the picture at all. So its mask is where its map, the mean by default, exceeds its own
        lowest tenth by at least half of the most that it does anywhere, and by at least `least`; it may be empty.
        """
        branch, _ = self._find(word, occurrence, image, which.get("branch", "prompt"))
        given: Selection = {"reduce": self.best_reduce(branch), **which}
        heat = self.heatmap(word, image=image, occurrence=occurrence, refine="edges", **given)
        return _outlines(heat[None], branch, least)[1][0]

    def masks(self, *, image: int = 0, least: float = LEAST, **which: Unpack[Selection]) -> Tensor:
        """The masks of all words without overlap: (height, width) int64, an index into `words_of(image)`, or -1.

        Where masks overlap, a pixel belongs to the word whose map is nearest to its own peak there; of concepts, with
        branch="concepts", to that with the largest one. Arguments as for `mask`.
        """
        given: Selection = {"reduce": self.best_reduce(which.get("branch", "prompt")), **which}
        return self._labels(image, least, given, refine="edges")

    def _labels(self, image: int, least: float, which: Selection, refine: str) -> Tensor:
        """For each pixel the word whose outline it is in, as for `masks`."""
        branch = which.get("branch", "prompt")
        words = self.words_of(image, branch)
        if not words:
            return torch.full(self.size, -1)
        heats = torch.stack([self.heatmap(word, image=image, refine=refine, **which) for word in words])
        rank, outlines = _outlines(heats, branch, least)
        word = rank.argmax(dim=0)
        return torch.where(outlines.gather(0, word[None])[0], word, -1)

    def best_reduce(self, branch: str = "prompt") -> str:
        """How maps of words are most accurate: "calibrated" where that is possible, else "mean"."""
        is_known = self.recording.calibration is not None and "head" in self.keep and branch != CONCEPTS
        return "calibrated" if is_known else "mean"

    def words_at(self, region: Region, *, image: int = 0, **which: Unpack[Selection]) -> list[tuple[Word, float]]:
        """The words that drew a region, largest share first: (word, its share of the attention inside the region).

        The shares sum to less than 1. The rest is the share of punctuation and, unless `of="text"`, of all that
        `dropped` has.

        Raises:
            ValueError: the region is empty or not inside the picture.
        """
        words, mask = self.words_of(image, which.get("branch", "prompt")), region_mask(region, self.size)
        shares = [float((self.heatmap(w, image=image, **which) * mask).sum() / mask.sum()) for w in words]
        return sorted(zip(words, shares, strict=True), key=lambda pair: -pair[1])

    def segmentation(self, *, image: int = 0, least: float = LEAST, **which: Unpack[Selection]) -> Tensor:
        """The dominant word of each pixel: (height, width) int64, an index into `words_of(image)`, or -1.

        It is the word with the largest share. Where start, end and punctuation together have a larger one, it is -1. In
        other models than ours start and padding take most of the attention everywhere, so that of all tokens that are
        no words does not count there.

        With branch="concepts" the words are the concepts, and it is -1 outside all outlines, as for `mask`. `masks` has
        the same along the picture's edges.
        """
        branch = which.get("branch", "prompt")
        if branch == CONCEPTS:
            return self._labels(image, least, which, refine="none")
        words, tokens = self.words_of(image, branch), self.tokens_of(image, branch)
        maps = [self.heatmap(word, image=image, **which) for word in words]
        of_words = {token for word in words for token in word.tokens}
        is_ours = set(self.columns_of(image, branch)) <= {SPECIAL}
        rest = [i for i in range(len(tokens)) if i not in of_words and is_ours]
        given = {name: value for name, value in which.items() if name != "branch"}
        nothing = self.heatmaps(rest, image=image, branch=branch, **given).sum(dim=0)  # type: ignore[arg-type]
        return torch.stack([nothing, *maps]).argmax(dim=0) - 1

    def measure(self, word: str | int | Word, *, image: int = 0, **which: Unpack[Selection]) -> Measures:
        """Size, position and spread of a word's heat map in numbers; arguments as for `heatmap`."""
        return measure(self.heatmap(word, image=image, **which))

    def leakage(self, *, image: int = 0, **which: Unpack[Selection]) -> Tensor:
        """Overlap of the maps p and q of each two words: (words, words), Σ min(p, q), each map scaled to a sum of 1.

        It is 1 on the diagonal, and 0 for words whose maps do not overlap.
        """
        words = self.words_of(image, which.get("branch", "prompt"))
        maps = [self.heatmap(word, image=image, **which).flatten() for word in words]
        if not words:
            return torch.zeros(0, 0)
        shares = torch.stack([heat / heat.sum().clamp_min(1e-12) for heat in maps])  # (words, height · width)
        return torch.minimum(shares[:, None], shares[None]).sum(dim=-1)

    def spread(self, word: str, **which: Unpack[Selection]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a word's heat map over all images whose prompt has it, (height, width) each.

        Raises:
            ValueError: fewer than two of the prompts have it.
        """
        found = []
        for image in range(len(self.prompts)):
            with suppress(ValueError):
                self._tokens(word, 0, image, which.get("branch", "prompt"))
                found.append(image)
        if len(found) < 2:
            raise ValueError(
                f"{len(found)} of {len(self.prompts)} prompts have {shown(word)!r}: a spread needs two or more"
            )
        heat = torch.stack([self.heatmap(word, image=image, **which) for image in found])
        return heat.mean(dim=0), heat.std(dim=0)

    # Files.

    def save(self, path: str | Path) -> None:
        """Write the means in fp16 and the pictures as safetensors, and everything else in the file's header.

        Reading the file needs no model.
        """
        means, similar = (
            {key: total / self._counts[key] for key, total in sums.items()} for sums in (self._sums, self._similar)
        )
        write_trace(path, Saved(self.recording, self.keep, self._counts, means, similar, self.pictures))

    @classmethod
    def load(cls, path: str | Path) -> "AttentionTrace":
        """Read a file written by `save`, also by older versions.

        Raises:
            ValueError: the file is damaged or is not an attention trace.
            OSError: it cannot be opened.
        """
        saved = read_trace(path)
        concepts = saved.recording.texts.get(CONCEPTS, [])[:1]
        named = [word.text for text in concepts for word in text.words]
        trace = cls(saved.keep, output=bool(saved.similar), concepts=named)
        trace._recording, trace._texts, trace.pictures = saved.recording, dict(saved.recording.texts), saved.pictures
        trace._sums, trace._similar = (
            {key: mean * saved.counts[key] for key, mean in means.items()} for means in (saved.means, saved.similar)
        )
        trace._counts = dict(saved.counts)
        return trace


def _outlines(heats: Tensor, branch: str, least: float) -> tuple[Tensor, Tensor]:
    """For maps (K, h, w) of a branch: by what to compare them at a pixel, and the outline of each, bool; see `mask`."""
    if branch != CONCEPTS:
        peaks = heats.amax(dim=(1, 2), keepdim=True)
        return heats / peaks.clamp_min(1e-12), heats >= peaks / 2
    if not (isinstance(least, Real) and math.isfinite(least)):
        raise ValueError(f"least is a number, the smallest share that counts, not {shown(least)!r}")
    pixels = heats.flatten(1)
    above = heats - pixels.kthvalue(max(1, pixels.shape[1] // 10), dim=1).values[:, None, None]
    return above, above >= (above.amax(dim=(1, 2), keepdim=True) / 2).clamp_min(least)
