"""One call of a diffusers pipeline while it is recorded: what its denoiser's attention layers read of its texts.

Shapes: B rows of the batch, I images, H heads, L queries, N positions of the picture, S keys, G columns of a text.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.tracing.concepts import (
    Concept,
    check_readable,
    check_unchanged,
    encode_concept,
    unwritten,
    with_concepts,
)
from pipelines.tracing.excite_any import find_moves, moved
from pipelines.tracing.families import Given, Place, read_arguments
from pipelines.tracing.kernels import Fused, Kernel, in_slices
from pipelines.tracing.passes import Layer, Pass, Row
from pipelines.tracing.provenance import Provenance, Source, as_list
from unet_xattn import AttentionTrace
from unet_xattn.bias import Bias, biased, total_bias
from unet_xattn.excite import Excited, Peaks
from unet_xattn.trace_plan import Calibration, Recording
from unet_xattn.words import CONCEPTS, PADDING, PICTURE, Text

VISIBLE = "use torch's own attention: set_attention_backend('native') or set_attn_processor(AttnProcessor2_0())"

KNOWN_TEXTS = 4
"""How many different texts of the denoiser's passes are remembered: two passes of a step have two."""

Check = Callable[[str, Kernel, Tensor, Tensor, Mapping[int, slice]], None]
"""Called with a layer, its kernel, the groups of its keys (B, 1, S, G), their shares (B, H, L, G), and for each row
that is recorded the queries of its picture."""


EditsOfText = Callable[[Text], tuple[list[Bias], list[Excited]]]
"""Called with the text of each row that reads the prompt; returns the biases on its tokens, and what is excited."""


class Call:
    """A call of a pipeline with these arguments, by name, that is recorded.

    Args:
        tokenizers: of each text encoder.
        check: see `Check`. edits: see `EditsOfText`.

    Raises:
        ValueError: from this and every method, where something is found that cannot be recorded rightly.
    """

    def __init__(
        self,
        attention: AttentionTrace,
        tokenizers: Mapping[str, Any],
        arguments: Mapping[str, Any],
        check: Check | None = None,
        edits: EditsOfText | None = None,
    ):
        if arguments["prompt"] is None:
            raise ValueError("this call has no prompt, so the words of its text are not known: give a prompt")
        if arguments.get("output_type") == "latent":
            raise ValueError("output_type='latent' gives no picture, whose size the maps have: use 'pil', 'np' or 'pt'")
        self.attention, self.check, self.edits = attention, check, edits
        self.arguments = dict(arguments)
        self.provenance = Provenance(tokenizers, self.arguments)
        self.images = len(as_list(arguments["prompt"])) * (arguments.get("num_images_per_prompt") or 1)
        self.running: list[Layer] = []
        self.now: Pass | None = None
        self._times: list[float] = []
        self._used: Counter[Source] = Counter()  # by rows of this step's passes
        self._recorded: set[tuple[int, str]] = set()  # steps and branches
        self._known: dict[tuple[int, ...], tuple[Given, list[Row]]] = {}
        self._texts: dict[str, list[Text]] = {}
        self._columns: dict[str, int] = {}  # branch -> how many of the groups' columns are recorded
        self._concepts: list[Concept] = []
        self._given: tuple[tuple, dict[str, Any]] = (), {}  # arguments of the pass
        self._layers: dict[str, set[str]] = {}  # branch -> layers of its first pass
        self._grids: dict[str, tuple[int, int]] = {}
        self._heads: dict[str, int] = {}
        self._drawn = (0, 0)
        self._moves: Tensor | None = None  # of the latents, after this step
        attention.begin()

    def read_concepts(self, pipe: DiffusionPipeline, denoiser: nn.Module) -> None:
        """Let the text encoders read the concepts, before the call."""
        check_readable(denoiser)
        own = self.provenance
        for name in self.attention.concepts:
            self.provenance = Provenance(own.tokenizers, {"prompt": name})
            self._concepts.append(encode_concept(pipe, name, self.arguments, self.provenance))
        self.provenance = own

    # The denoiser.

    def enter_denoiser(self, denoiser: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._given = args, {name: list(x) if isinstance(x, list) else x for name, x in kwargs.items()}
        given = read_arguments(denoiser, args, kwargs)
        if not self._times or self._times[-1] != given.time:
            self._times.append(given.time)
            self._used.clear()
        rows = self._rows(denoiser, given)
        self._used.update(source for row in rows for source in row.sources)
        step = len(self._times) - 1
        if step == 1:
            self.attention.check_budget(self.arguments.get("num_inference_steps") or 1)
        branches: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            branches.setdefault(row.branch, []).append(number)
        # Of several passes of a step, as Heun's method and skip-layer guidance have, the first one counts. So do the
        # first rows of a branch, where perturbed ones follow.
        branches = {
            name: numbers[: self.images] for name, numbers in branches.items() if (step, name) not in self._recorded
        }
        for name, numbers in branches.items():
            if len(numbers) != self.images:
                what = f"{len(numbers)} rows of its batch read a {name} for {self.images} pictures"
                raise ValueError(f"{type(denoiser).__name__} cannot be recorded: {what}")
        self._recorded |= {(step, name) for name in branches}
        for name, numbers in branches.items():
            if name not in self._texts:
                self._texts[name] = [rows[number].text for number in numbers]
                self._columns[name] = max(len(text.tokens) for text in self._texts[name])
                self.attention.expect(name, self._texts[name])
        self._drawn = given.size
        self.now = Pass(given, rows, step, branches)
        if self.edits is not None:
            found = [self.edits(row.text) if row.branch == "prompt" else ([], []) for row in rows]
            self.now.biases, self.now.excited = [own[0] for own in found], [own[1] for own in found]

    def _rows(self, denoiser: nn.Module, given: Given) -> list[Row]:
        """The rows of the batch, looked up again when the text has changed."""
        if given.source not in self._known:
            found = self.provenance.rows(given.texts, self._used)
            if not any(branch for branch, _ in found):
                what = "nothing in its text was given by a text encoder in this call (are there prompt_embeds?)"
                raise ValueError(f"the words that {type(denoiser).__name__} reads are not known: {what}")
            beside = (PADDING, PICTURE) if given.has_picture else (PADDING,)
            rows = []
            for (branch, tokens), length in zip(found, given.lengths, strict=True):
                branch = branch or "negative"  # SDXL's empty one is zeros, which no encoder gave
                within = {column: t for column, t in tokens.items() if column < length}
                sources = {token.source for of_column in tokens.values() for token in of_column}
                rows.append(Row(branch, *self.provenance.text(branch, within, beside), sources))
            self._known[given.source] = given, rows  # with `given`, whose tensors are known by their identity
            if len(self._known) > KNOWN_TEXTS:
                del self._known[next(iter(self._known))]
        return self._known[given.source][1]

    def leave_denoiser(self, denoiser: nn.Module, out: Any) -> None:
        now, self.now = self.now, None
        if now is None or not now.branches:
            return
        kind = type(denoiser).__name__
        if not now.seen:
            shown = f" ({'; '.join(now.unknown[:4])})" if now.unknown else ""
            raise ValueError(f"{kind} cannot be recorded: no attention layer reads text in a way that is known{shown}")
        for branch in now.branches:
            first = self._layers.setdefault(branch, now.seen)
            if first != now.seen:
                names = ", ".join(sorted(first ^ now.seen)[:3])
                raise ValueError(f"{kind} cannot be recorded: a pass left out layers ({names}): switch off its cache")
        if self._concepts and "prompt" in now.branches:
            self._pass_with_concepts(denoiser, now, out)
        if "prompt" in now.branches and any(now.excited):
            self._pass_with_gradients(denoiser, now)

    def _pass_with_gradients(self, denoiser: nn.Module, done: Pass) -> None:
        """Run a pass again to see where its latents should move to excite words."""
        numbers, level = done.branches["prompt"], self._level(done)
        excited = [[words for words in done.excited[number] if words.acts(level)] for number in numbers]

        def run(arguments: dict[str, Any], peaks: Peaks) -> None:
            self.now = replace(done, given=read_arguments(denoiser, (), arguments), seen=set(), peaks=peaks)
            denoiser.forward(**arguments)  # without our hooks on the denoiser
            self.now = None

        if any(excited):
            self._moves = find_moves(denoiser, *self._given, excited, numbers, level, run)

    def move_latents(self, pipe: DiffusionPipeline, step: int, time: Any, tensors: dict[str, Tensor]) -> dict:
        """The `callback_on_step_end` of a call that excites words."""
        moves, self._moves = self._moves, None
        return {} if moves is None else {"latents": moved(tensors["latents"], moves)}

    def _pass_with_concepts(self, denoiser: nn.Module, done: Pass, out: Any) -> None:
        """Run a pass that gave `out` again, with the concepts beside its text."""
        kind, numbers = type(denoiser).__name__, done.branches["prompt"]
        count = sum(len(concept.tokens) for concept in self._concepts)
        if CONCEPTS not in self._columns:
            self._columns[CONCEPTS] = done.width + count
            spelled = [(concept.name, concept.tokens) for concept in self._concepts]
            self.attention.expect_concepts([done.rows[number].text for number in numbers], done.width, spelled)
        arguments = with_concepts(denoiser, *self._given, self._concepts)
        given = read_arguments(denoiser, (), arguments)
        self.now = again = Pass(given, done.rows, done.step, {CONCEPTS: numbers}, concepts=count)
        found = denoiser.forward(**arguments)  # without our hooks on the denoiser
        self.now = None
        if again.seen != done.seen:
            names = ", ".join(sorted(again.seen ^ done.seen)[:3])
            raise ValueError(
                f"{kind} cannot read concepts: layers do so in a way that cannot be seen ({names}): {VISIBLE}"
            )
        check_unchanged(kind, found, out)

    # Its layers.

    def enter_layer(self, name: str, handed: bool) -> None:
        if self.now is not None:
            self.running.append(Layer(name, handed))

    def leave_layer(self) -> None:
        if self.now is None:
            return
        layer = self.running.pop()
        if layer.slices and not self.now.concepts:  # of which concepts could not be kept out
            self._keep(layer, in_slices(layer.slices, len(self.now.rows)))
        if not layer.calls and (layer.handed or self.now.given.is_joint):
            raise ValueError(f"layer {layer.name} computes its attention in a way that cannot be seen: {VISIBLE}")

    def fused(self, kernel: Fused) -> Tensor | None:
        """A kernel has run. Returns what it gives without the concepts that stand beside its text, if there are any."""
        now = self.now
        if now is None or not self.running:
            return None
        layer = self.running[-1]
        layer.calls += 1
        if now.concepts:
            _, length, keys = kernel.shape
            place = now.given.locate(length, keys, layer.handed)
            if place is None:
                return None
            kernel = unwritten(kernel, place, now.given.lengths[0], now.concepts, now.given.is_joint)
        bias = self._bias(layer, kernel.shape, kernel.q.shape[1], kernel.device)
        kernel = kernel if bias is None else kernel.biased(bias)
        self._keep(layer, kernel)
        return None if bias is None and not now.concepts else kernel.out

    def softmax(self, out: Tensor) -> Tensor | None:
        """A softmax has run; that of an explicit processor is (part of B·H, L, S). Returns it as edits leave it."""
        now = self.now
        if now is None or not self.running or out.ndim != 3:
            return None
        layer = self.running[-1]
        layer.calls += 1
        heads, rest = divmod(len(out), len(now.rows))
        bias = None if rest else self._bias(layer, (len(now.rows), out.shape[1], out.shape[2]), heads, out.device)
        if now.biases and rest:
            raise ValueError(f"layer {layer.name} computes its attention in slices, which cannot be edited: {VISIBLE}")
        if bias is not None:
            out = biased(out.unflatten(0, (-1, heads)), bias).flatten(0, 1)
        if not layer.slices or layer.slices[0].shape[1:] == out.shape[1:]:  # those of an IP-Adapter have other keys
            layer.slices.append(out)
        return None if bias is None else out

    def _bias(self, layer: Layer, shape: tuple[int, int, int], heads: int, device: torch.device) -> Tensor | None:
        """What edits add to the scores of an attention call of B rows, L queries and S keys, (B, H or 1, L, S)."""
        now, (rows, length, keys) = self.now, shape
        if now is None or not any(now.biases):
            return None
        place = now.given.locate(length, keys, layer.handed)
        if place is None:
            return None
        if all(bias.heads is None for own in now.biases for bias in own):
            heads = 1  # the same for all
        tokens = max(len(row.text.tokens) for row in now.rows)
        of_tokens = total_bias(now.biases, layer.name, self._level(now), place.grid, heads, tokens)
        if of_tokens is None:
            return None
        total, count = torch.zeros(rows, heads, length, keys, device=device), place.grid[0] * place.grid[1]
        for number, row in enumerate(now.rows):
            columns = torch.tensor(row.columns, dtype=torch.long)
            own = of_tokens[number][..., : len(columns)].to(device)
            queries = slice(place.queries[number], place.queries[number] + count)
            total[number, :, queries, place.keys[number] + columns] = own
        return total

    def _level(self, now: Pass) -> float:
        """The noise level of a pass, 1 in the first step."""
        return 1 - now.step / max(self.arguments.get("num_inference_steps") or 1, now.step + 1)

    def _keep(self, layer: Layer, kernel: Kernel) -> None:
        """Record the first kernel of a layer that reads the text."""
        now = self.now
        assert now is not None
        if layer.name in now.seen or not now.branches:
            return
        batch, length, keys = kernel.shape
        place = now.given.locate(length, keys, layer.handed)
        if place is None:
            if layer.handed or now.given.is_joint:
                now.unknown.append(f"{layer.name}: {length} queries, {keys} keys")
            return
        now.seen.add(layer.name)
        if not self.attention.wants(layer.name):
            return
        groups = now.groups(place, keys, kernel.device)[:batch]
        shares = kernel.shares(groups)  # (B, H, L, G)
        count = place.grid[0] * place.grid[1]
        queries = {n: slice(first, first + count) for n, first in enumerate(place.queries)}
        if now.peaks is not None:
            own = [shares[number, :, queries[number]] for number in now.branches["prompt"]]
            now.peaks(layer.name, torch.stack(own), place.grid)
            return
        if self.check is not None and not now.concepts:
            recorded = [number for numbers in now.branches.values() for number in numbers]
            self.check(layer.name, kernel, groups, shares, {number: queries[number] for number in recorded})
        self._grids[layer.name], self._heads[layer.name] = place.grid, shares.shape[1]
        if "head" not in self.attention.keep:
            shares = shares.mean(dim=1, keepdim=True, dtype=torch.float32)
        for branch, numbers in now.branches.items():
            own = [shares[number, :, queries[number], : self._columns[branch]] for number in numbers]
            self.attention.recorder(now.step, {branch: slice(None)})(layer.name, torch.stack(own), place.grid)
            if self.attention.output:
                self._keep_output(layer, kernel, place, branch, [queries[number] for number in numbers])

    def _keep_output(self, layer: Layer, kernel: Kernel, place: Place, branch: str, queries: Sequence[slice]) -> None:
        """Record the outputs of a branch's pictures and of their tokens.

        In joint attention tokens have outputs of their own. Where they ask nothing, their values stand for these: what
        a query is given that reads one token alone.
        """
        now = self.now
        assert now is not None
        if not isinstance(kernel, Fused):
            raise ValueError(f"layer {layer.name} gives its output in a way that cannot be seen: {VISIBLE}")
        more = torch.arange(now.given.lengths[0] - now.concepts, now.given.lengths[0])
        outputs, tokens = [], []
        for number, own in zip(now.branches[branch], queries, strict=True):
            outputs.append(kernel.outputs_at(number, own))
            columns = torch.tensor(now.rows[number].columns, dtype=torch.long)
            keys = (place.keys[number] + torch.cat([columns, more])).to(kernel.device)
            found = (kernel.outputs_at if now.given.is_joint else kernel.values_at)(number, keys)
            of_text, of_concepts = found.split([len(columns), now.concepts])
            gap = self._columns[branch] - len(found)  # the padding, the picture and what only longer texts have
            tokens.append(torch.cat([F.pad(of_text, (0, 0, 0, gap)), of_concepts]))
        step_of = {branch: slice(None)}
        self.attention.record_output(layer.name, now.step, step_of, torch.stack(outputs), torch.stack(tokens))

    # The end.

    def finish(self, images: Any, calibration: Calibration | None = None) -> None:
        """Keep the pictures that the call returned, and the model's calibration if all its layers were recorded."""
        if not self._grids:
            raise ValueError("nothing was recorded: the call never ran its denoiser, or no layer of it was chosen")
        self.attention.check_budget(1)  # for a call of a single step
        pictures = as_bytes(images)
        height, width = pictures.shape[1:3]
        is_same_ratio = height * self._drawn[1] == width * self._drawn[0]
        plain = {name: value for name, value in self.arguments.items() if isinstance(value, int | float | str)}
        settings = plain | {"unknown_words": self._unknown_words()}
        drawn = None if is_same_ratio else self._drawn
        if calibration and any(len(heads) != self._heads.get(layer) for layer, heads in calibration.items()):
            calibration = None
        recording = Recording(
            self._texts, (height, width), self._grids, self._heads, len(self._times), calibration, settings, drawn
        )
        self.attention.finish(pictures, recording)

    def _unknown_words(self) -> list[str]:
        """Words of the prompts with a token that stands for what a vocabulary lacks."""
        lacking = {tokenizer.unk_token for tokenizer in self.provenance.tokenizers.values()}
        return sorted(
            {
                word.text
                for text in self._texts["prompt"]
                for word in text.words
                if any(text.tokens[token] in lacking for token in word.tokens)
            }
        )


def as_bytes(images: Any) -> Tensor:
    """Pictures as pipelines return them: PIL, arrays (I, h, w, 3) or tensors (I, 3, h, w) -> (I, h, w, 3) uint8."""
    if isinstance(images, Tensor):
        return (images.float().clamp(0, 1).permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
    array = np.stack([np.asarray(image) for image in images])
    if array.ndim != 4 or array.shape[-1] != 3:
        raise ValueError(f"this pipeline gives no pictures of three colours, but {array.shape[1:]}")
    return torch.from_numpy(array if array.dtype == np.uint8 else (array.clip(0, 1) * 255).round().astype(np.uint8))
