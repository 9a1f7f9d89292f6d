"""What a pipeline's attention layers read while it draws, as running sums.

Shapes: I images, B rows of a batch, H heads (1 where the heads are averaged), T tokens, N positions of a layer's grid,
D width of all heads.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from unet_xattn.attention import RecordLayer, is_named
from unet_xattn.trace_plan import KEEP, TRACE_BYTES, Recording
from unet_xattn.words import CONCEPTS, Text, beside, check_concepts, chosen, find_phrase, is_one_of, items, shown


class TraceRecorder:
    """Running sums of attention weights, one per layer, averaged over steps and heads unless these are kept apart.

    Memory does not grow with the number of steps unless `keep` names "step". Each layer keeps its own grid.

    Args:
        keep: which of "step" and "head" to keep apart; "mean" for neither, "full" for both.
        budget: bytes it may take. A recording that would take more is refused: before the first step where its size is
            known, after it otherwise.
        words: words and phrases to keep apart; all tokens that are not theirs are added up. All words by default.
        layers: names of the layers to record, or patterns such as "up_blocks.*"; all by default.
        output: whether to record output-space maps, too (`similarity`).
        concepts: what else to read beside the prompt without its being written, such as "sky".
    """

    def __init__(
        self,
        keep: str | Collection[str] = "mean",
        budget: int = TRACE_BYTES,
        words: Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        output: bool = False,
        concepts: Sequence[str] = (),
    ):
        kept = {"mean": (), "full": KEEP}.get(keep, (keep,)) if isinstance(keep, str) else items(keep)
        if unknown := [shown(name) for name in kept if not is_one_of(name, KEEP)]:
            raise ValueError(f"keep can name {', '.join(KEEP)}, 'mean' or 'full', not {', '.join(sorted(unknown))}")
        for name, given in (("words", words), ("layers", layers), ("concepts", concepts)):
            if given is not None and (isinstance(given, str) or not all(isinstance(one, str) for one in given)):
                raise ValueError(f"{name} is a list of texts, not {shown(given)!r}")
        self.keep = frozenset(kept)
        self.budget = budget
        check_concepts(concepts)
        self.output = output
        self.concepts = tuple(concepts)
        self.pictures: Tensor | None = None
        """The pictures, (I, height, width, 3) uint8, once they are drawn."""
        self._chosen_words, self._chosen_layers = words, layers
        self._recording: Recording | None = None
        self._texts: dict[str, list[Text]] = {}
        self._places: dict[str, list[list[int]]] = {}  # branch -> for each image the new place of each token
        # (branch, step or -1, layer) -> sum of weights (I, H, T, N) in fp32, and the number of passes in that sum
        self._sums: dict[tuple[str, int, str], Tensor] = {}
        self._counts: dict[tuple[str, int, str], int] = {}
        self._similar: dict[tuple[str, int, str], Tensor] = {}  # likewise, sums of similarities (I, 1, T, N)
        self._of_text: dict[str, list[list[int]]] = {}  # branch -> for each image the tokens that are text

    def start(self, recording: Recording, concepts: Sequence[tuple[str, Sequence[str]]] = ()) -> None:
        """Start a new recording of which everything is known.

        Args:
            concepts: see `expect_concepts`; they follow the T tokens of the recording.

        Raises:
            ValueError: it would take more than the budget, or none of its layers or prompts was chosen.
        """
        self.begin()
        grids = {layer: grid for layer, grid in recording.grids.items() if self.wants(layer)}
        if not grids:
            raise ValueError(f"no layer is called {', '.join(self._chosen_layers or ())}: {', '.join(recording.grids)}")
        for branch, texts in recording.texts.items():
            self.expect(branch, texts)
        if concepts:
            self.expect_concepts(recording.texts["prompt"], recording.tokens, concepts)
        heads = {layer: recording.heads[layer] for layer in grids}
        calibration = recording.calibration if len(grids) == len(recording.grids) else None
        recording = replace(recording, texts=dict(self._texts), grids=grids, heads=heads, calibration=calibration)
        self._check(recording.bytes(not self._heads_at_once, "step" in self.keep, self.output))
        self._recording = recording

    def begin(self) -> None:
        """Start a new recording of which nothing is known yet; `finish` describes it."""
        self._recording, self.pictures = None, None
        for kept in (self._texts, self._places, self._of_text, self._sums, self._similar, self._counts):
            kept.clear()

    def expect(self, branch: str, texts: Sequence[Text]) -> None:
        """The texts of the images of a branch, before its first pass.

        Raises:
            ValueError: no prompt has one of the chosen words.
        """
        self._of_text[branch] = [text.own for text in texts]
        if self._chosen_words is None:
            self._texts[branch] = list(texts)
            return
        reduced = [chosen(text, self._chosen_words) for text in texts]
        self._texts[branch], self._places[branch] = [text for text, _ in reduced], [places for _, places in reduced]
        for word in self._chosen_words if branch == "prompt" else ():
            for text in texts:
                with suppress(ValueError):
                    find_phrase(word, text.text, text.words)
                    break
            else:
                raise ValueError(f"{word!r} is in none of the prompts: {'; '.join(text.text for text in texts)[:200]}")

    def expect_concepts(
        self, texts: Sequence[Text], columns: int, concepts: Sequence[tuple[str, Sequence[str]]]
    ) -> None:
        """The concepts that are read beside the texts of the images, before the first pass with them.

        Args:
            columns: the number of tokens before those of the concepts.
            concepts: the name of each and its tokens, as the tokenizer spells them.
        """
        read = [beside(text, columns, concepts) for text in texts]
        self._texts[CONCEPTS], self._places[CONCEPTS] = [text for text, _ in read], [places for _, places in read]
        count = sum(len(tokens) for _, tokens in concepts)
        self._of_text[CONCEPTS] = [[*text.own, *range(columns, columns + count)] for text in texts]

    def wants(self, layer: str) -> bool:
        """Whether a layer is to be recorded."""
        return is_named(layer, self._chosen_layers)

    def recorder(self, step: int, branches: Mapping[str, slice]) -> RecordLayer:
        """The `record` argument of one pass of the UNet; `branches` names rows of its batch ("prompt", "negative")."""

        def record(layer: str, weights: Tensor, grid: tuple[int, int]) -> None:
            if not self.wants(layer):
                return
            part = weights.detach().transpose(-2, -1)  # (B, H, T, N), their layout in memory
            if self._heads_at_once:
                part = part.mean(dim=1, keepdim=True, dtype=torch.float32)
            for branch, rows in branches.items():
                key = (branch, step if "step" in self.keep else -1, layer)
                self._counts[key] = self._counts.get(key, 0) + 1
                _add(self._sums, key, self._added_up(branch, part[rows]))

        return record

    def record_output(self, layer: str, step: int, branches: Mapping[str, slice], out: Tensor, tokens: Tensor) -> None:
        """Add how similar a layer's outputs are: out (B, N, D) of the positions, tokens (B, T, D) of the tokens."""
        for branch, rows in branches.items():
            key = (branch, step if "step" in self.keep else -1, layer)
            similar = similarity(out[rows].detach(), tokens[rows].detach(), self._of_text[branch])
            _add(self._similar, key, self._added_up(branch, similar[:, None]))

    def _added_up(self, branch: str, weights: Tensor) -> Tensor:
        """Weights (I, H, T, N) with the tokens that were not chosen added up, (I, H, tokens of the texts, N)."""
        if branch not in self._places:
            return weights
        count = max(len(text.tokens) for text in self._texts[branch])
        one_hot = torch.zeros(len(weights), 1, count, weights.shape[2], device=weights.device)
        for image, (places, text) in enumerate(zip(self._places[branch], self._texts[branch], strict=True)):
            rest = [len(text.tokens) - 1] * (weights.shape[2] - len(places))
            one_hot[image, 0, [*places, *rest], range(weights.shape[2])] = 1
        return one_hot @ weights.float()

    def check_budget(self, steps: int) -> None:
        """Raise ValueError if what one step took would exceed the budget after so many steps."""
        longest: dict[bool, int] = {}  # of each kind of branch; `finish` pads the others to it
        kept = [(branch == CONCEPTS, total) for s in (self._sums, self._similar) for (branch, _, _), total in s.items()]
        for kind, total in kept:
            longest[kind] = max(longest.get(kind, 0), total.shape[2])
        taken = sum(4 * total[:, :, 0].numel() * longest[kind] for kind, total in kept)
        self._check(taken * (steps if "step" in self.keep else 1))

    def _check(self, size: int) -> None:
        if size > self.budget:
            raise ValueError(
                f"this recording would take {size / 2**20:,.1f} MiB, its budget is {self.budget / 2**20:,.1f} MiB: "
                "draw fewer pictures, use keep='mean', name words or layers to record, or give trace a larger budget"
            )

    def finish(self, pictures: Tensor, recording: Recording | None = None) -> None:
        """Keep the pictures, (I, height, width, 3) uint8, and average over heads unless they are kept apart.

        Args:
            recording: what was recorded, if `start` did not know it.

        Raises:
            RuntimeError: a layer was not recorded, or an unknown one was. A map of the others would look right.
        """
        if recording is not None:
            self._recording = replace(recording, texts=dict(self._texts))
        assert self._recording is not None
        expected, seen = set(self._recording.grids), {layer for _, _, layer in self._sums}
        if expected != seen:
            raise RuntimeError(f"attention was not recorded: expected layers {sorted(expected)}, got {sorted(seen)}")
        self.pictures = pictures.cpu()
        for sums in (self._sums, self._similar):
            for key, total in sums.items():
                sums[key] = F.pad(total, (0, 0, 0, self._recording.columns(key[0]) - total.shape[2]))
        if "head" not in self.keep:
            self._sums = {key: total.mean(dim=1, keepdim=True) for key, total in self._sums.items()}

    def average_images(self, recording: Recording) -> None:
        """Average over the images, which have the same prompt; the result is one image of `recording`'s first text."""
        for sums in (self._sums, self._similar):
            for key, total in sums.items():
                sums[key] = total.mean(dim=0, keepdim=True)
        self._texts = {branch: texts[:1] for branch, texts in recording.texts.items()}
        self._recording = replace(recording, texts=dict(self._texts))

    @property
    def _heads_at_once(self) -> bool:
        """Whether heads are averaged in each pass. Sums over steps are small enough to be averaged once, at the end."""
        return self.keep == {"step"}


def similarity(out: Tensor, tokens: Tensor, of_text: Sequence[Sequence[int]]) -> Tensor:
    """Output-space maps of ConceptAttention (arXiv 2502.04320): the softmax over a text's tokens of the dot products of
    a position's attention output with each token's, with all heads side by side.

    Args:
        out: (I, N, D). tokens: (I, T, D), the outputs of the tokens or what stands for them.
        of_text: for each image the tokens that are text; the others have 0.

    Returns:
        (I, T, N) float32, whose sums over the tokens are 1, or 0 for a text without tokens.
    """
    products = tokens.float() @ out.float().transpose(1, 2)  # (I, T, N)
    is_text = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    for image, own in enumerate(of_text):
        is_text[image, list(own)] = True
    is_text = is_text.to(products.device)[..., None]
    return products.masked_fill(~is_text, -torch.inf).softmax(dim=1).nan_to_num(0.0)


def _add(sums: dict[tuple[str, int, str], Tensor], key: tuple[str, int, str], part: Tensor) -> None:
    if key in sums:
        sums[key] += part
    else:
        sums[key] = part.to(torch.float32, copy=True)
