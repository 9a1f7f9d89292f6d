"""The attention of a pipeline's cross-attention layers while it drew a picture, and questions about it.

Shapes: I images, H heads (1 where the heads are averaged), T tokens, h×w the grid of one layer, N = h·w its positions;
a heat map has the picture's own height and width.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Unpack

from unet_xattn.attention import RecordLayer
from unet_xattn.grounding import Measures, Region, measure, region_mask
from unet_xattn.trace_plan import TRACE_BYTES, Recording
from unet_xattn.words import Text, Word, find_phrase, is_index, is_one_of, shown

FORMAT = "unet_xattn attention 3"
KEEP = ("step", "head")

ROUNDING = 0.02
"""By how much the shares at a place may exceed 1: they come from fp16 or bf16."""


class Selection(TypedDict, total=False):
    """Which of the recorded maps a question is about; its keys are arguments of `AttentionTrace.heatmap`."""

    step: int | None  # None, the default, averages over all; likewise for layer and head
    layer: str | None
    head: int | None
    branch: str  # "prompt", the default, or "negative"
    reduce: str  # "mean", the default, or "calibrated"


class AttentionTrace:
    """Running sums of attention weights, one per layer, averaged over steps and heads unless these are kept apart.

    Memory does not grow with the number of steps unless `keep` names "step". Each layer keeps its own grid.

    Args:
        keep: which of "step" and "head" to keep apart; "mean" for neither, "full" for both.
        budget: bytes it may take; a recording that would take more is refused before the first step.
    """

    def __init__(self, keep: str | Collection[str] = "mean", budget: int = TRACE_BYTES):
        kept = {"mean": (), "full": KEEP}.get(keep, (keep,)) if isinstance(keep, str) else _items(keep)
        if unknown := [shown(name) for name in kept if not is_one_of(name, KEEP)]:
            raise ValueError(f"keep can name {', '.join(KEEP)}, 'mean' or 'full', not {', '.join(sorted(unknown))}")
        self.keep = frozenset(kept)
        self.budget = budget
        self.pictures: Tensor | None = None
        """The pictures, (I, height, width, 3) uint8, once they are drawn."""
        self._recording: Recording | None = None
        # (branch, step or -1, layer) -> sum of weights (I, H, T, N) in fp32, and the number of passes in that sum
        self._sums: dict[tuple[str, int, str], Tensor] = {}
        self._counts: dict[tuple[str, int, str], int] = {}

    # Recording: the pipeline calls these.

    def start(self, recording: Recording) -> None:
        """Start a new recording.

        Raises:
            ValueError: it would take more than the budget.
        """
        size = recording.bytes(heads=not self._heads_at_once, steps="step" in self.keep)
        if size > self.budget:
            raise ValueError(
                f"this recording would take {size / 2**20:,.1f} MiB, its budget is {self.budget / 2**20:,.1f} MiB: "
                "draw fewer pictures, use keep='mean', or give trace a larger budget"
            )
        self._recording, self.pictures = recording, None
        self._sums.clear()
        self._counts.clear()

    def recorder(self, step: int, branches: Mapping[str, slice]) -> RecordLayer:
        """The `record` argument of one pass of the UNet; `branches` names rows of its batch ("prompt", "negative")."""

        def record(layer: str, weights: Tensor, grid: tuple[int, int]) -> None:
            part = weights.detach().transpose(-2, -1)  # (B, H, T, N), their layout in memory
            if self._heads_at_once:
                part = part.mean(dim=1, keepdim=True, dtype=torch.float32)
            for branch, rows in branches.items():
                key = (branch, step if "step" in self.keep else -1, layer)
                self._counts[key] = self._counts.get(key, 0) + 1
                if key in self._sums:
                    self._sums[key] += part[rows]
                else:
                    self._sums[key] = part[rows].to(torch.float32, copy=True)

        return record

    def finish(self, pictures: Tensor) -> None:
        """Keep the pictures, (I, height, width, 3) uint8, and average over heads unless they are kept apart.

        Raises:
            RuntimeError: a layer was not recorded, or an unknown one was. A map of the others would look right.
        """
        assert self._recording is not None
        expected, seen = set(self._recording.grids), {layer for _, _, layer in self._sums}
        if expected != seen:
            raise RuntimeError(f"attention was not recorded: expected layers {sorted(expected)}, got {sorted(seen)}")
        self.pictures = pictures.cpu()
        if "head" not in self.keep:
            self._sums = {key: total.mean(dim=1, keepdim=True) for key, total in self._sums.items()}

    @property
    def _heads_at_once(self) -> bool:
        """Whether heads are averaged in each pass. Sums over steps are small enough to be averaged once, at the end."""
        return self.keep == {"step"}

    # Questions.

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
        """The words of the prompt, or the negative prompt, of one image."""
        return list(self._text(image, branch).words)

    def tokens_of(self, image: int, branch: str = "prompt") -> tuple[str, ...]:
        """All tokens of one image's prompt as the tokenizer spells them, with start, end and padding."""
        tokens = self._text(image, branch).tokens
        return tokens + ("[padding]",) * (self.recording.tokens - len(tokens))

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
    ) -> Tensor:
        """Mean attention of one layer, (T, h, w) float32; at each position, the shares of all tokens sum to 1."""
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
    ) -> Tensor:
        """The heat map of a word, a phrase or a token: (height, width) float32 in [0, 1].

        Args:
            word: a word or phrase of the prompt in any case, one of `words`, or the position of a token.
            occurrence: which occurrence, from 0, if the prompt has several.
            step, layer, head: one of each; None averages over all.
            reduce: "mean" over all layers and heads, or "calibrated", their mean weighted by how far each can be
                trusted. The latter needs a model with a calibration, and heads kept apart.
            scale: "absolute", the word's share of attention at each pixel, or "peak", that share over its maximum.

        Raises:
            ValueError: the word is not in the prompt, or the selection was not recorded.
        """
        if not is_one_of(scale, ("absolute", "peak")):
            raise ValueError(f"scale is 'absolute' or 'peak', not {shown(scale)!r}")
        tokens = self._tokens(word, occurrence, image, branch)
        heat = self.heatmaps(tokens, step=step, layer=layer, head=head, image=image, branch=branch, reduce=reduce)
        total = heat.sum(dim=0).clamp(0, 1)
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
    ) -> Tensor:
        """The heat maps of several tokens, (tokens, height, width) float32; arguments as for `heatmap`."""
        wanted = _items(tokens)
        for token in wanted:
            self._check_token(token)
        heat = torch.zeros(len(wanted), *self.size)
        for name, its_head, weight in self._weighted(layer, head, reduce):
            share = self.maps(name, step=step, head=its_head, image=image, branch=branch)[wanted]  # (tokens, h, w)
            if wanted:  # a word may have no tokens, and nothing cannot be interpolated
                heat += weight * F.interpolate(share[None], self.size, mode="bilinear")[0]
        return heat

    def words_at(self, region: Region, *, image: int = 0, **which: Unpack[Selection]) -> list[tuple[Word, float]]:
        """The words that drew a region, largest share first: (word, its share of the attention inside the region).

        The shares sum to less than 1. The rest is the share of the start and end tokens and of punctuation.

        Raises:
            ValueError: the region is empty or not inside the picture.
        """
        words, mask = self.words_of(image, which.get("branch", "prompt")), region_mask(region, self.size)
        shares = [float((self.heatmap(w, image=image, **which) * mask).sum() / mask.sum()) for w in words]
        return sorted(zip(words, shares, strict=True), key=lambda pair: -pair[1])

    def segmentation(self, *, image: int = 0, **which: Unpack[Selection]) -> Tensor:
        """The dominant word of each pixel: (height, width) int64, an index into `words_of(image)`, or -1.

        It is the word with the largest share. Where start, end and punctuation tokens together have a larger one, it
        is -1.
        """
        words = self.words_of(image, which.get("branch", "prompt"))
        maps = [self.heatmap(word, image=image, **which) for word in words]
        of_words = {token for word in words for token in word.tokens}
        rest = [self.heatmap(t, image=image, **which) for t in range(self.recording.tokens) if t not in of_words]
        nothing = torch.stack(rest).sum(dim=0) if rest else torch.zeros(self.size)
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
            return word.tokens
        if isinstance(word, str):
            return find_phrase(word, text.text, text.words, occurrence)
        self._check_token(word)
        return (word,)

    def _check_token(self, token: Any) -> None:
        if not is_index(token, self.recording.tokens):
            raise ValueError(
                f"token {shown(token)} does not exist: the prompt has tokens 0 to {self.recording.tokens - 1}"
            )

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
        header = {
            "recording": asdict(self.recording),
            "keep": sorted(self.keep),
            "counts": {_name(key): count for key, count in self._counts.items()},
        }
        tensors = {
            _name(key): (total / self._counts[key]).half().contiguous().cpu() for key, total in self._sums.items()
        }
        if self.pictures is not None:
            tensors["pictures"] = self.pictures.contiguous()
        save_file(tensors, path, metadata={"format": FORMAT, "trace": json.dumps(header, ensure_ascii=False)})

    @classmethod
    def load(cls, path: str | Path) -> "AttentionTrace":
        """Read a file written by `save`.

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
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is {metadata.get('format', 'not an attention trace')!r}, expected {FORMAT!r}")
        try:
            return cls._restored(json.loads(metadata["trace"]), tensors)
        except Exception as error:  # nearly anything, where a header does not have the form that `save` gave it
            raise ValueError(f"{path} is damaged: its parts do not fit each other ({shown(error, 80)})") from error

    @classmethod
    def _restored(cls, header: dict[str, Any], tensors: Mapping[str, Tensor]) -> "AttentionTrace":
        """The trace of a file's header and tensors. Raises anything unless it can answer every question."""
        known = header["recording"]
        known["texts"] = {branch: [_text(text) for text in texts] for branch, texts in known["texts"].items()}
        known["grids"] = {layer: tuple(grid) for layer, grid in known["grids"].items()}
        recording = Recording(**known | {"size": tuple(known["size"])})
        if not recording.is_whole():
            raise ValueError("the texts, sizes or counts of its header")
        trace = cls(keep=header["keep"])
        trace._recording, trace.pictures = recording, tensors.get("pictures")
        images = len(trace.prompts)
        for name, count in header["counts"].items():
            branch, step, layer = name.split("|")
            mean = tensors[name].float()  # (I, H, T, N)
            rows, heads, tokens, positions = mean.shape
            fits = (rows, positions) == (images, math.prod(recording.grids[layer])) and tokens >= recording.tokens
            if branch not in recording.texts or not fits or heads not in (1, recording.heads) or not 0 < count < 2**31:
                raise ValueError(f"the shape of {name}")
            if not (mean.min() >= 0 and mean.sum(dim=2).max() <= 1 + ROUNDING):  # not NaN either
                raise ValueError(f"the shares of {name}")
            trace._sums[branch, int(step), layer] = mean * count
            trace._counts[branch, int(step), layer] = count
        _ = trace.recording  # raises where there are no maps
        if len({mean.shape[1] for mean in trace._sums.values()}) > 1:
            raise ValueError("the numbers of heads")
        pictures = trace.pictures
        if pictures is not None and (pictures.dtype, tuple(pictures.shape)) != (torch.uint8, (images, *trace.size, 3)):
            raise ValueError("the pictures")
        return trace


def _items(value: Any) -> list[Any]:
    """The values of a collection; a text, or what has no values, as a list of one."""
    value = value.tolist() if isinstance(value, Tensor) else value
    if isinstance(value, Collection) and not isinstance(value, str):
        with suppress(TypeError):  # numpy's arrays without axes
            return list(value)
    return [value]


def _name(key: tuple[str, int, str]) -> str:
    return "|".join(map(str, key))


def _text(saved: dict[str, Any]) -> Text:
    words = tuple(Word(w["text"], w["start"], w["end"], tuple(w["tokens"])) for w in saved["words"])
    return Text(saved["text"], words, tuple(saved["tokens"]))
