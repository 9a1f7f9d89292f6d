"""The attention of a pipeline's cross-attention layers while it drew a picture, and questions about it.

Shapes: I images, H heads (1 where the heads are averaged), T tokens, h×w the grid of one layer, N = h·w its positions;
a heat map has the picture's own height and width.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Unpack

from unet_xattn.grounding import Measures, Region, measure, region_mask
from unet_xattn.refine import refine as refine_edges
from unet_xattn.trace_file import read_trace, write_trace
from unet_xattn.trace_plan import Recording
from unet_xattn.trace_recorder import TraceRecorder
from unet_xattn.words import OTHER, PADDING, PICTURE, Text, Word, find_phrase, is_index, is_one_of, items, shown


class Selection(TypedDict, total=False):
    """Which of the recorded maps a question is about; its keys are arguments of `AttentionTrace.heatmap`."""

    step: int | None  # None, the default, averages over all; likewise for layer and head
    layer: str | None
    head: int | None
    branch: str  # "prompt", the default, or "negative"
    reduce: str  # "mean", the default, or "calibrated"
    of: str  # "all", the default, or "text"


class AttentionTrace(TraceRecorder):
    """A recording, and questions about it. A pipeline records into it, see `TraceRecorder`, whose arguments it has."""

    @property
    def recording(self) -> Recording:
        """What was recorded: texts, size, layers, settings.

        Raises:
            ValueError: nothing has been recorded yet.
        """
        if self._recording is None or not self._sums:
            raise ValueError("nothing has been recorded yet: call the pipeline inside `with trace(pipe) as attention:`")
        return self._recording

    @property
    def prompts(self) -> list[str]:
        """The prompt of each image."""
        return [] if self._recording is None else [text.text for text in self._recording.texts["prompt"]]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures and of every heat map."""
        return self.recording.size

    @property
    def words(self) -> list[Word]:
        """The words of the (first) prompt, with their characters and tokens."""
        return self.words_of(0)

    def words_of(self, image: int, branch: str = "prompt") -> list[Word]:
        """The words of the prompt, or the negative prompt, of one image, without those that were cut off."""
        return [word for word in self._text(image, branch).words if word.tokens]

    def cut_off(self, image: int = 0, branch: str = "prompt") -> list[Word]:
        """The words that were not read, because the text is longer than its encoder reads."""
        return [word for word in self._text(image, branch).words if not word.tokens]

    def tokens_of(self, image: int, branch: str = "prompt") -> tuple[str, ...]:
        """All tokens of one image's prompt as the tokenizer spells them, with start, end and padding."""
        tokens = self._text(image, branch).tokens
        return tokens + (PADDING,) * (self.recording.tokens - len(tokens))

    def columns_of(self, image: int = 0, branch: str = "prompt") -> list[str]:
        """Names of the columns that are no single tokens, of `PADDING`, `PICTURE` and `OTHER`."""
        tokens = self._text(image, branch).tokens
        return [name for name in (PADDING, PICTURE, OTHER) if name in tokens]

    def dropped(self, *, image: int = 0, **which: Unpack[Selection]) -> Tensor:
        """The share that `of="text"` leaves out, that of the picture's own positions: (height, width) float32."""
        if PICTURE not in self.columns_of(image, which.get("branch", "prompt")):
            return torch.zeros(self.size)
        given: Selection = {**which, "of": "all"}
        return self.heatmap(PICTURE, image=image, **given)

    @property
    def layers(self) -> list[str]:
        """The recorded layers, in the order they ran."""
        seen = {layer for _, _, layer in self._sums}
        return [] if self._recording is None else [layer for layer in self._recording.grids if layer in seen]

    @property
    def steps(self) -> list[int]:
        """The steps that were kept apart; none by default."""
        return sorted({step for _, step, _ in self._sums if step >= 0})

    def maps(
        self,
        layer: str,
        *,
        step: int | None = None,
        head: int | None = None,
        image: int = 0,
        branch: str = "prompt",
        of: str = "all",
    ) -> Tensor:
        """Mean attention of one layer, (T, h, w) float32; at each position, the shares of all tokens sum to 1.

        Args:
            of: "all", shares of everything that is read, or "text", shares of the text alone: where the picture's own
                positions are among the keys, their share is left out and the others are divided by the rest.
        """
        if not is_one_of(of, ("all", "text")):
            raise ValueError(f"of is 'all' or 'text', not {shown(of)!r}")
        self._text(image, branch)  # raises for an unknown image or branch
        for name, value in (("step", step), ("head", head)):
            if value is not None and name not in self.keep:
                raise ValueError(f"{name}s were averaged during recording: trace with keep={name!r} to select one")
        possible = isinstance(layer, str) and (step is None or is_index(step, self.recording.steps))
        keys = [k for k in self._sums if possible and k[0] == branch and k[2] == layer and step in (None, k[1])]
        if not keys:
            where = f"layer {shown(layer)!r}" + ("" if step is None else f" at step {shown(step)}")
            raise ValueError(
                f"nothing was recorded for {where} of branch {branch!r}; layers: {', '.join(self.layers)}; "
                f"steps: {self.steps or 'averaged'}"
            )
        mean = torch.stack([self._sums[k][image] for k in keys]).sum(dim=0).cpu() / sum(
            self._counts[k] for k in keys
        )  # (H, T, N)
        if head is not None and not is_index(head, len(mean)):
            raise ValueError(f"layer {layer!r} has heads 0 to {len(mean) - 1}, not {shown(head)}")
        asked = mean.mean(dim=0) if head is None else mean[head]  # (T, N)
        if of == "text" and PICTURE in (tokens := self.tokens_of(image, branch)):
            picture = tokens.index(PICTURE)
            rest = 1 - asked[picture]
            asked = asked / rest.clamp_min(1e-12)
            asked[picture] = 0
        return asked.unflatten(1, self.recording.grids[layer])

    def heatmap(
        self,
        word: str | int | Word,
        *,
        occurrence: int = 0,
        step: int | None = None,
        layer: str | None = None,
        head: int | None = None,
        image: int = 0,
        branch: str = "prompt",
        reduce: str = "mean",
        scale: str = "absolute",
        of: str = "all",
        refine: str = "none",
    ) -> Tensor:
        """The heat map of a word, a phrase or a token: (height, width) float32 in [0, 1].

        Args:
            word: a word or phrase of the prompt in any case, one of `words`, the position of a token, or the name of a
                column that is no token, such as "[padding]".
            occurrence: which occurrence, from 0, if the prompt has several.
            step, layer, head: one of each; None averages over all.
            reduce: "mean" over all layers and heads, or "calibrated", their mean weighted by how far each can be
                trusted. The latter needs a model with a calibration, and heads kept apart.
            scale: "absolute", the word's share of attention at each pixel, or "peak", that share over its maximum.
            of: "all", shares of everything that is read, or "text", shares of the text alone, see `maps`.
            refine: "edges" spreads the map along the picture's own colours (`refine.refine`): it has the outline of
                things, but holds the picture's edges as well as the attention. "none" leaves it as it is.

        Raises:
            ValueError: the word is not in the prompt or was cut off, or the selection was not recorded.
        """
        if not is_one_of(refine, ("none", "edges")):
            raise ValueError(f"refine is 'none' or 'edges', not {shown(refine)!r}")
        if not is_one_of(scale, ("absolute", "peak")):
            raise ValueError(f"scale is 'absolute' or 'peak', not {shown(scale)!r}")
        tokens = self._tokens(word, occurrence, image, branch)
        heat = self.heatmaps(
            tokens, step=step, layer=layer, head=head, image=image, branch=branch, reduce=reduce, of=of
        )
        total = heat.sum(dim=0).clamp(0, 1)
        if refine == "edges":
            total = self._refined(total[None], image)[0]
        return total / total.max().clamp_min(1e-12) if scale == "peak" else total

    def heatmaps(
        self,
        tokens: Sequence[int],
        *,
        step: int | None = None,
        layer: str | None = None,
        head: int | None = None,
        image: int = 0,
        branch: str = "prompt",
        reduce: str = "mean",
        of: str = "all",
    ) -> Tensor:
        """The heat maps of several tokens, (tokens, height, width) float32; arguments as for `heatmap`."""
        wanted, (height, width) = items(tokens), self._whole
        for token in wanted:
            self._check_token(token)
        heat = torch.zeros(len(wanted), height, width)
        for name, its_head, weight in self._weighted(layer, head, reduce):
            share = self.maps(name, step=step, head=its_head, image=image, branch=branch, of=of)[wanted]
            if wanted:  # nothing cannot be interpolated
                heat += weight * F.interpolate(share[None], (height, width), mode="bilinear")[0]  # (tokens, h, w)
        top, left = (height - self.size[0]) // 2, (width - self.size[1]) // 2
        return heat[:, top : top + self.size[0], left : left + self.size[1]]

    @property
    def _whole(self) -> tuple[int, int]:
        """Height and width of all that was drawn, in pixels of the pictures, which may be its middle."""
        if self.recording.drawn is None:
            return self.size
        (height, width), (drawn_height, drawn_width) = self.size, self.recording.drawn
        scale = max(height / drawn_height, width / drawn_width)
        return max(height, int(drawn_height * scale)), max(width, int(drawn_width * scale))

    def _refined(self, maps: Tensor, image: int) -> Tensor:
        """Maps (K, height, width) spread along the edges of a picture."""
        if self.pictures is None:
            raise ValueError("this trace holds no picture, whose edges could refine a map")
        finest = max(height for height, _ in self.recording.grids.values())
        return refine_edges(maps, self.pictures[image].float() / 255, self._whole[0] / finest)

    def mask(
        self, word: str | int | Word, *, image: int = 0, occurrence: int = 0, **which: Unpack[Selection]
    ) -> Tensor:
        """The outline of what a word drew: bool (height, width), where its refined map is at least half its peak.

        By default the map is "calibrated" where that can be had. It holds the picture's edges as well as the attention.
        """
        given: Selection = {"reduce": self.best_reduce, **which}
        heat = self.heatmap(word, image=image, occurrence=occurrence, refine="edges", **given)
        return heat >= heat.max() / 2

    def masks(self, *, image: int = 0, **which: Unpack[Selection]) -> Tensor:
        """The masks of all words without overlap: (height, width) int64, an index into `words_of(image)`, or -1.

        Where masks overlap, a pixel belongs to the word whose map is nearest to its own peak there.
        """
        given: Selection = {"reduce": self.best_reduce, **which}
        words = self.words_of(image, given.get("branch", "prompt"))
        if not words:
            return torch.full(self.size, -1)
        heats = [self.heatmap(word, image=image, refine="edges", scale="peak", **given) for word in words]
        peak, word = torch.stack(heats).max(dim=0)
        return torch.where(peak >= 0.5, word, -1)

    @property
    def best_reduce(self) -> str:
        """ "calibrated" where that is possible, else "mean"."""
        return "calibrated" if self.recording.calibration is not None and "head" in self.keep else "mean"

    def words_at(self, region: Region, *, image: int = 0, **which: Unpack[Selection]) -> list[tuple[Word, float]]:
        """The words that drew a region, largest share first: (word, its share of the attention inside the region).

        The shares sum to less than 1. The rest is the share of start, end, padding and punctuation, and, unless
        `of="text"`, of the picture's own positions.

        Raises:
            ValueError: the region is empty or not inside the picture.
        """
        words, mask = self.words_of(image, which.get("branch", "prompt")), region_mask(region, self.size)
        shares = [float((self.heatmap(w, image=image, **which) * mask).sum() / mask.sum()) for w in words]
        return sorted(zip(words, shares, strict=True), key=lambda pair: -pair[1])

    def segmentation(self, *, image: int = 0, **which: Unpack[Selection]) -> Tensor:
        """The dominant word of each pixel: (height, width) int64, an index into `words_of(image)`, or -1.

        It is the word with the largest share. Where start, end and punctuation together have a larger one, it is -1. In
        other models than ours start and padding take most of the attention everywhere, so that of all tokens that are
        no words does not count there.
        """
        branch = which.get("branch", "prompt")
        words, tokens = self.words_of(image, branch), self.tokens_of(image, branch)
        maps = [self.heatmap(word, image=image, **which) for word in words]
        of_words = {token for word in words for token in word.tokens}
        rest = [i for i in range(len(tokens)) if i not in of_words and not self.columns_of(image, branch)]
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

    def _weighted(self, layer: str | None, head: int | None, reduce: str) -> list[tuple[str, int | None, float]]:
        """The maps whose weighted sum is a heat map: (layer, head or None for the mean of heads, weight)."""
        if not is_one_of(reduce, ("mean", "calibrated")):
            raise ValueError(f"reduce is 'mean' or 'calibrated', not {shown(reduce)!r}")
        if reduce == "mean" or layer is not None or head is not None:
            layers = self.layers if layer is None else [layer]
            return [(name, head, 1 / len(layers)) for name in layers]
        calibration = self.recording.calibration
        if calibration is None:
            raise ValueError("this model has no calibration: `unet-xattn calibrate` measures one")
        if "head" not in self.keep:
            raise ValueError("heads were averaged during recording: trace with keep='head' for a calibrated map")
        return [(name, h, w) for name, weights in calibration.items() for h, w in enumerate(weights) if w > 0]

    def _tokens(self, word: str | int | Word, occurrence: int, image: int, branch: str) -> tuple[int, ...]:
        text = self._text(image, branch)
        if isinstance(word, Word):
            if text.text[word.start : word.end] != word.text or max(word.tokens, default=0) >= len(text.tokens):
                raise ValueError(f"the word {word.text!r} is not of this prompt: take one of words_of({image})")
            if not word.tokens:
                raise ValueError(f"{word.text!r} was cut off or left out: no text encoder read it")
            return word.tokens
        if isinstance(word, str):
            return self._tokens_of_phrase(word, occurrence, text)
        self._check_token(word)
        return (word,)

    def _check_token(self, token: Any) -> None:
        if not is_index(token, self.recording.tokens):
            raise ValueError(
                f"token {shown(token)} does not exist: the prompt has tokens 0 to {self.recording.tokens - 1}"
            )

    @staticmethod
    def _tokens_of_phrase(phrase: str, occurrence: int, text: Text) -> tuple[int, ...]:
        if phrase in (PADDING, PICTURE, OTHER) and phrase in text.tokens:
            return (text.tokens.index(phrase),)
        tokens = find_phrase(phrase, text.text, text.words, occurrence)
        if not tokens:
            raise ValueError(f"{phrase!r} was cut off or left out: no text encoder read it")
        return tokens

    def _text(self, image: int, branch: str) -> Text:
        texts = self.recording.texts
        if not is_one_of(branch, texts):
            raise ValueError(f"branch {shown(branch)!r} was not recorded; recorded: {', '.join(sorted(texts))}")
        if not is_index(image, len(texts[branch])):
            raise ValueError(
                f"image {shown(image)} does not exist: {len(texts[branch])} image(s) were recorded, from 0"
            )
        return texts[branch][image]

    # Files.

    def save(self, path: str | Path) -> None:
        """Write the means in fp16 and the pictures as safetensors, and everything else in the file's header.

        Reading the file needs no model.
        """
        means = {key: total / self._counts[key] for key, total in self._sums.items()}
        write_trace(path, self.recording, self.keep, means, self._counts, self.pictures)

    @classmethod
    def load(cls, path: str | Path) -> "AttentionTrace":
        """Read a file written by `save`, also by older versions.

        Raises:
            ValueError: the file is damaged or is not an attention trace.
            OSError: it cannot be opened.
        """
        recording, keep, means, counts, pictures = read_trace(path)
        trace = cls(keep)
        trace._recording, trace._texts, trace.pictures = recording, dict(recording.texts), pictures
        trace._sums = {key: mean.float() * counts[key] for key, mean in means.items()}
        trace._counts = counts
        return trace
