"""The maps of a recording: what each position of the picture read of each token, and their averages as heat maps.

Shapes: I images, H heads (1 where the heads are averaged), T tokens, h×w the grid of one layer, N = h·w its positions;
a heat map has the picture's own height and width.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from unet_xattn.refine import refine as refine_edges
from unet_xattn.trace_plan import Recording
from unet_xattn.trace_recorder import TraceRecorder
from unet_xattn.words import (
    CONCEPTS,
    PADDING,
    PICTURE,
    Text,
    Word,
    find_concept,
    find_phrase,
    is_index,
    is_one_of,
    items,
    shown,
)


class Selection(TypedDict, total=False):
    """Which of the recorded maps a question is about; its keys are arguments of `TraceMaps.heatmap`."""

    step: int | None  # None, the default, averages over all; likewise for layer and head
    layer: str | None
    head: int | None
    branch: str  # "prompt", the default, "negative" or "concepts"
    reduce: str  # "mean", the default, "calibrated" or "output"
    of: str  # "all", the default, "text" or "words"


class TraceMaps(TraceRecorder):
    """A recording, its words and its maps."""

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
        """The words of the prompt, or of another branch, of one image, without those that were cut off.

        Each concept is one word of the branch "concepts".
        """
        return [word for word in self._text(image, branch).words if word.tokens]

    def cut_off(self, image: int = 0, branch: str = "prompt") -> list[Word]:
        """The words that were not read, because the text is longer than its encoder reads."""
        return [word for word in self._text(image, branch).words if not word.tokens]

    def tokens_of(self, image: int, branch: str = "prompt") -> tuple[str, ...]:
        """All tokens of one image's prompt as the tokenizer spells them, with start, end and padding."""
        tokens = self._text(image, branch).tokens
        return tokens + (PADDING,) * (self.recording.columns(branch) - len(tokens))

    def columns_of(self, image: int = 0, branch: str = "prompt") -> list[str]:
        """Names of what was read besides words, of `SPECIAL`, `PADDING`, `PICTURE` and `OTHER`; they have maps, too."""
        return list(self._text(image, branch).named)

    @property
    def layers(self) -> list[str]:
        """The recorded layers, in the order they ran."""
        seen = {layer for _, _, layer in self._sums}
        return [] if self._recording is None else [layer for layer in self._recording.grids if layer in seen]

    @property
    def steps(self) -> list[int]:
        """The steps that were kept apart; none by default."""
        return sorted({step for _, step, _ in self._sums if step >= 0})

    # Maps.

    def maps(
        self,
        layer: str,
        *,
        step: int | None = None,
        head: int | None = None,
        image: int = 0,
        branch: str = "prompt",
        reduce: str = "mean",
        of: str = "all",
    ) -> Tensor:
        """Mean attention of one layer, (T, h, w) float32; at each position, the shares of all tokens sum to 1.

        Args:
            reduce: "mean", shares of the attention, or "output", output-space maps (`trace_recorder.similarity`), whose
                values sum to 1 over the text's tokens. These are of all heads together.
            of: "all", shares of everything that is read, or "text", shares of the text alone: start, end and template
                tokens, the padding and the picture's own positions have 0, and the others are divided by their sum.
        """
        if not is_one_of(of, ("all", "text")):
            raise ValueError(f"of is 'all' or 'text', not {shown(of)!r}")
        if not is_one_of(reduce, ("mean", "output")):
            raise ValueError(f"reduce is 'mean' or 'output' for the maps of a layer, not {shown(reduce)!r}")
        if reduce == "output" and not self._similar:
            raise ValueError("no output-space maps were recorded: trace with output=True")
        if reduce == "output" and head is not None:
            raise ValueError("output-space maps are of all heads together: leave out the head")
        sinks = self._sinks(image, branch)  # raises for an unknown image or branch
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
        sums = self._similar if reduce == "output" else self._sums
        total = torch.stack([sums[k][image] for k in keys]).sum(dim=0).cpu()
        mean = total / sum(self._counts[k] for k in keys)  # (H, T, N)
        if head is not None and not is_index(head, len(mean)):
            raise ValueError(f"layer {layer!r} has heads 0 to {len(mean) - 1}, not {shown(head)}")
        asked = mean.mean(dim=0) if head is None else mean[head]  # (T, N)
        if of == "text":
            asked = asked.index_fill(0, torch.tensor(sinks, dtype=torch.long), 0)
            asked = asked / asked.sum(dim=0).clamp_min(1e-12)
        return asked.unflatten(1, self.recording.grids[layer])

    def _sinks(self, image: int, branch: str) -> list[int]:
        """Positions of the tokens and columns that are no text."""
        text, tokens = self._text(image, branch), self.tokens_of(image, branch)
        return [i for i, name in enumerate(tokens) if i in text.special or name in (PADDING, PICTURE)]

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
            word: a word or phrase of the prompt in any case, one of `words`, the position of a token, or one of
                `columns_of`, such as "[padding]". What the prompt does not have may be one of `concepts`, whose map is
                that of the branch "concepts".
            occurrence: which occurrence, from 0, if the prompt has several.
            step, layer, head: one of each; None averages over all.
            reduce: "mean" over all layers and heads; "calibrated", their mean weighted by how far each can be trusted,
                which needs a model with a calibration, and heads kept apart; or "output", the mean of output-space
                maps, which were recorded if the trace has output=True, see `maps`.
            scale: "absolute", the word's share of attention at each pixel, or "peak", that share over its maximum.
            of: "all", shares of everything that is read; "text", shares of the text alone, see `maps`; or "words", the
                word's contrast: what its share exceeds the mean of all words' maps by, see `heatmaps`.
            refine: "edges" spreads the map along the picture's own colours (`refine.refine`): it has the outline of
                things, but holds the picture's edges as well as the attention. "none" leaves it as it is.

        Raises:
            ValueError: the word is not in the prompt or was cut off, or the selection was not recorded.
        """
        if not is_one_of(refine, ("none", "edges")):
            raise ValueError(f"refine is 'none' or 'edges', not {shown(refine)!r}")
        if not is_one_of(scale, ("absolute", "peak")):
            raise ValueError(f"scale is 'absolute' or 'peak', not {shown(scale)!r}")
        branch, tokens = self._find(word, occurrence, image, branch)
        heat = self.heatmaps(
            tokens, step=step, layer=layer, head=head, image=image, branch=branch, reduce=reduce, of=of
        )
        total = heat.sum(dim=0).clamp(0, 1)
        if refine == "edges":
            total = self.refined(total[None], image)[0]
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
        """The heat maps of several tokens, (tokens, height, width) float32; arguments as for `heatmap`.

        With of="words" a map p is p − p̄ · m, where p̄ is its mean over the picture, and m the mean over all words v of
        p_v / p̄_v: the form that their maps have in common. It is below 0 where the token is read less than this form
        says, and 0 everywhere if the maps of all words have one form, however large they are.
        """
        if not is_one_of(of, ("all", "text", "words")):
            raise ValueError(f"of is 'all', 'text' or 'words', not {shown(of)!r}")
        wanted, (height, width) = items(tokens), self._whole
        for token in wanted:
            self._check_token(token, branch)
        words = [word.tokens for word in self.words_of(image, branch)] if of == "words" else []
        asked = [*wanted, *(token for own in words for token in own)]
        heat = torch.zeros(len(asked), height, width)
        parts = self._weighted(layer, head, reduce)  # refuses what is no reduction
        share_of, layer_reduce = "all" if of == "words" else of, "output" if reduce == "output" else "mean"
        for name, its_head, weight in parts:
            share = self.maps(
                name, step=step, head=its_head, image=image, branch=branch, reduce=layer_reduce, of=share_of
            )[asked]
            if asked:  # nothing cannot be interpolated
                heat += weight * F.interpolate(share[None], (height, width), mode="bilinear")[0]  # (asked, h, w)
        top, left = (height - self.size[0]) // 2, (width - self.size[1]) // 2
        heat = heat[:, top : top + self.size[0], left : left + self.size[1]]
        found, of_words = heat[: len(wanted)], heat[len(wanted) :].split([len(own) for own in words])
        return _contrast(found, [own.sum(dim=0) for own in of_words]) if of == "words" else found

    @property
    def _whole(self) -> tuple[int, int]:
        """Height and width of all that was drawn, in pixels of the pictures, which may be its middle."""
        if self.recording.drawn is None:
            return self.size
        (height, width), (drawn_height, drawn_width) = self.size, self.recording.drawn
        scale = max(height / drawn_height, width / drawn_width)
        return max(height, int(drawn_height * scale)), max(width, int(drawn_width * scale))

    def refined(self, maps: Tensor, image: int) -> Tensor:
        """Maps (K, height, width) spread along the edges of a picture, as `heatmap` has them by refine="edges"."""
        if self.pictures is None:
            raise ValueError("this trace holds no picture, whose edges could refine a map")
        finest = max(height for height, _ in self.recording.grids.values())
        return refine_edges(maps, self.pictures[image].float() / 255, self._whole[0] / finest)

    def _weighted(self, layer: str | None, head: int | None, reduce: str) -> list[tuple[str, int | None, float]]:
        """The maps whose weighted sum is a heat map: (layer, head or None for the mean of heads, weight)."""
        if not is_one_of(reduce, ("mean", "calibrated", "output")):
            raise ValueError(f"reduce is 'mean', 'calibrated' or 'output', not {shown(reduce)!r}")
        if reduce != "calibrated" or layer is not None or head is not None:
            layers = self.layers if layer is None else [layer]
            return [(name, head, 1 / len(layers)) for name in layers]
        calibration = self.recording.calibration
        if calibration is None:
            raise ValueError("this model has no calibration: `unet-xattn calibrate` measures one")
        if "head" not in self.keep:
            raise ValueError("heads were averaged during recording: trace with keep='head' for a calibrated map")
        trusted = [(name, h, w) for name, weights in calibration.items() for h, w in enumerate(weights) if w > 0]
        total = sum(w for *_, w in trusted)
        return [(name, h, w / total) for name, h, w in trusted]

    # Words and their tokens.

    def _find(self, word: str | int | Word, occurrence: int, image: int, branch: str) -> tuple[str, tuple[int, ...]]:
        """The branch and the tokens that a question about a word of a branch is about: it may be a concept."""
        own = self._text(image, branch).words
        concepts = self._text(image, CONCEPTS).words if CONCEPTS in self.recording.texts else ()
        if branch == "prompt" and isinstance(word, Word) and word in concepts and word not in own:
            return CONCEPTS, word.tokens
        try:
            return branch, self._tokens(word, occurrence, image, branch)
        except ValueError as error:
            if branch != "prompt" or not isinstance(word, str) or not concepts:
                raise
            if found := find_concept(word, concepts):
                return CONCEPTS, found.tokens
            raise ValueError(f"{error}; the concepts are: {', '.join(map(str, concepts))}") from None

    def _tokens(self, word: str | int | Word, occurrence: int, image: int, branch: str) -> tuple[int, ...]:
        text = self._text(image, branch)
        if isinstance(word, Word):
            if text.text[word.start : word.end] != word.text or max(word.tokens, default=0) >= len(text.tokens):
                raise ValueError(f"the word {word.text!r} is not of this prompt: take one of words_of({image})")
            if not word.tokens:
                raise ValueError(f"{word.text!r} was cut off or left out: no text encoder read it")
            return word.tokens
        if isinstance(word, str):
            return self._tokens_of_phrase(word, occurrence, text, branch)
        self._check_token(word, branch)
        return (word,)

    def _check_token(self, token: Any, branch: str) -> None:
        self._text(0, branch)  # raises for an unknown branch
        if not is_index(token, count := self.recording.columns(branch)):
            raise ValueError(f"token {shown(token)} does not exist: the prompt has tokens 0 to {count - 1}")

    @staticmethod
    def _tokens_of_phrase(phrase: str, occurrence: int, text: Text, branch: str) -> tuple[int, ...]:
        if phrase in text.named:
            return text.named[phrase]
        if branch == CONCEPTS:
            if concept := find_concept(phrase, text.words):
                return concept.tokens
            raise ValueError(f"{shown(phrase)!r} is no concept; they are: {', '.join(map(str, text.words))}")
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


def _contrast(maps: Tensor, words: Sequence[Tensor]) -> Tensor:
    """Maps (K, h, w) less what they have in common with the maps of all words, (h, w) each: see `heatmaps`."""
    forms = [heat / heat.mean().clamp_min(1e-12) for heat in words]
    common = torch.stack(forms).mean(dim=0) if forms else torch.zeros(())
    return maps - maps.mean(dim=(1, 2), keepdim=True) * common
