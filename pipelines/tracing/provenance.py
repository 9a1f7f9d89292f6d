"""Which word each column of a denoiser's text is, found by value: what its text encoders gave is looked for in it.

So order of the batch, branches of guidance, templates, dropped beginnings and padding need no code for any family.

Shapes: B texts of one reading, L tokens of it, T columns of the denoiser's text, D their width.
"""

import difflib
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any
from unicodedata import normalize

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from unet_xattn.words import WORD, Text, Word, tokens_of

CHANNELS = 8
"""Channels of a hidden state that are compared: enough to tell all tokens of a call apart."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What a text encoder read and gave in one forward pass.

    turn: how often it had been called before in this call of the pipeline.
    ids, real: (B, L), the tokens, and which of them are no padding.
    marks: (states, B, L, CHANNELS), the first channels of each of its hidden states.
    widths: of the hidden states.
    """

    encoder: str
    turn: int
    ids: Tensor
    real: Tensor
    marks: Tensor
    widths: frozenset[int]


Source = tuple[Reading, int]
"""A text that an encoder read: a reading, and which of its texts."""


@dataclass(frozen=True)
class Token:
    """A token that an encoder read: at a position of one text of a reading."""

    reading: Reading
    text: int
    position: int

    @property
    def id(self) -> int:
        return int(self.reading.ids[self.text, self.position])

    @property
    def is_real(self) -> bool:
        return bool(self.reading.real[self.text, self.position])

    @property
    def source(self) -> Source:
        return self.reading, self.text


Row = dict[int, list[Token]]
"""Column -> the tokens whose encodings it holds: one, or one of each encoder where these are side by side."""

Matches = dict[Source, list[int]]
"""Where an encoding was read: the positions in each text."""


def read_output(encoder: str, turn: int, ids: Tensor, mask: Tensor | None, output: Any, pad: int, end: int) -> Reading:
    """The reading of an encoder's forward pass: `ids` and `mask` (B, L) are what it was given."""
    ids = ids.detach().cpu()
    states = [state.detach() for state in _states(output, ids.shape)]
    marks = torch.stack([state[..., :CHANNELS] for state in states]) if states else torch.empty(0, *ids.shape, CHANNELS)
    real = _unpadded(ids, pad, pad == end) if mask is None else mask.detach().cpu().bool()
    return Reading(encoder, turn, ids, real, marks.cpu(), frozenset(state.shape[-1] for state in states))


def _states(output: Any, shape: torch.Size) -> Iterator[Tensor]:
    """All tensors (B, L, at least CHANNELS), or (L, B, ...), in what an encoder gave."""
    if isinstance(output, Tensor):
        if output.ndim == 3 and output.is_floating_point() and output.shape[-1] >= CHANNELS:
            if output.shape[:2] == shape:
                yield output
            elif output.shape[:2] == shape[::-1]:
                yield output.transpose(0, 1)
    elif isinstance(output, Mapping | list | tuple):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _states(part, shape)


def _unpadded(ids: Tensor, pad: int, pad_is_end: bool) -> Tensor:
    """Which ids are no padding, where an encoder was given no mask: all but the pad tokens at both ends."""
    is_pad = ids == pad
    leading = is_pad.cummin(dim=1).values
    trailing = is_pad.flip(1).cummin(dim=1).values.flip(1)
    if pad_is_end:  # the first one ends the text
        trailing = trailing & (trailing.cumsum(dim=1) > 1)
    return ~(leading | trailing)


class Provenance:
    """The readings of one call of a pipeline, and the texts it was called with.

    Args:
        tokenizers: of each text encoder.
        arguments: of the call, among them "prompt" and perhaps "negative_prompt", "prompt_2" and so on.
    """

    def __init__(self, tokenizers: Mapping[str, PreTrainedTokenizerBase], arguments: Mapping[str, Any]):
        self.tokenizers, self.arguments = tokenizers, arguments
        self.readings: list[Reading] = []
        self._indexes: dict[torch.dtype, dict[bytes, Matches]] = {}

    def add(self, encoder: str, ids: Tensor, mask: Tensor | None, output: Any) -> None:
        """Note what an encoder read and gave."""
        tokenizer = self.tokenizers[encoder]
        turn = sum(reading.encoder == encoder for reading in self.readings)
        pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.readings.append(read_output(encoder, turn, ids, mask, output, pad, end))
        self._indexes.clear()

    # Columns.

    def rows(self, texts: Sequence[Sequence[Tensor]], used: Counter[Source] | None = None) -> list[tuple[str, Row]]:
        """For each row of the denoiser's batch its branch and its columns; "" and {} if no encoder gave its text.

        Equal texts are told apart by the order of the images, and by what other rows and passes of the step have used.

        texts: for each row, one (T, D) for each text argument.
        used: how many rows of earlier passes have each text.
        """
        used = Counter(used)
        count, images = len(as_list(self.arguments["prompt"])), self.arguments.get("num_images_per_prompt") or 1
        found: list[tuple[str, Row]] = []
        for number, parts in enumerate(texts):
            columns, own = self._columns(parts), number // images % count
            matched = Counter(source for matches in columns.values() for source in matches)
            # Each encoder by itself: one may read the negative prompt only.
            order = sorted(matched, key=lambda s: (-matched[s], self._prompt_of(s) != own, used[s], s[0].turn, s[1]))
            chosen = {reading.encoder: (reading, text) for reading, text in reversed(order)}
            used.update(chosen.values())
            row = _in_order(columns, chosen.values())
            found.append((self._branch(*chosen[min(chosen)]) if chosen else "", row))
        return found

    def _branch(self, reading: Reading, text: int) -> str:
        """Whether a text is a prompt or a negative prompt.

        Pipelines read the prompts first and the negative ones in another turn; or each prompt in a turn of its own; or
        both kinds at once in either order.
        """
        count = len(as_list(self.arguments["prompt"]))
        turns = [other for other in self.readings if other.encoder == reading.encoder]
        if len(turns) > 1:
            return "prompt" if reading.turn < (count if self._is_alone(reading) else 1) else "negative"
        if len(reading.ids) <= count:
            return "prompt"
        halves = reading.ids[:count], reading.ids[-count:]
        first, last = (sum(self._words_read(reading.encoder, half)) for half in halves)
        is_first = text < len(reading.ids) - count
        return "prompt" if is_first == (first > last) else "negative"

    def _is_alone(self, reading: Reading) -> bool:
        """Whether an encoder reads each prompt in a turn of its own."""
        count = len(as_list(self.arguments["prompt"]))
        return any(other.encoder == reading.encoder and len(other.ids) < count for other in self.readings)

    def _prompt_of(self, source: Source) -> int:
        """Which of the prompts, or of the negative prompts, a text is."""
        reading, text = source
        return (reading.turn if self._is_alone(reading) else text) % len(as_list(self.arguments["prompt"]))

    def _words_read(self, encoder: str, ids: Tensor) -> Iterator[int]:
        """The number of words of each prompt that are among ids (B, L)."""
        for text, own in enumerate(ids.tolist()):
            found, _ = align(self.string("prompt", encoder, text), self.tokenizers[encoder], own)
            yield sum(map(bool, found.values()))

    def _columns(self, parts: Sequence[Tensor]) -> dict[int, Matches]:
        """For each column all places where its encoding was read."""
        columns: dict[int, Matches] = defaultdict(dict)
        widths = {width for reading in self.readings for width in reading.widths}
        first = 0
        for part in parts:
            for channel in {0, *widths}:  # encoders may be side by side in the channels
                if channel + CHANNELS <= part.shape[-1]:
                    marks = part[:, channel : channel + CHANNELS].detach().cpu()
                    for column, mark in enumerate(_as_bytes(marks), first):
                        columns[column].update(self._index(part.dtype).get(mark, {}))
            first += len(part)
        return columns

    def _index(self, dtype: torch.dtype) -> dict[bytes, Matches]:
        """Mark -> where it was read, for marks of a dtype."""
        if dtype not in self._indexes:
            index: dict[bytes, dict[Source, set[int]]] = defaultdict(lambda: defaultdict(set))
            for reading in self.readings:
                for state in reading.marks.to(dtype):
                    for text, tokens in enumerate(state):
                        for position, mark in enumerate(_as_bytes(tokens)):
                            index[mark][reading, text].add(position)
            index.pop(bytes(CHANNELS * dtype.itemsize), None)  # zeros are no encoding
            self._indexes[dtype] = {
                mark: {source: sorted(positions) for source, positions in found.items()}
                for mark, found in index.items()
            }
        return self._indexes[dtype]

    # Texts.

    def text(self, branch: str, row: Row, beside: Sequence[str]) -> tuple[Text, list[int]]:
        """The text of a row and the columns of its tokens; the columns `beside` follow in the text's tokens.

        Padding has no column of its own. Where encoders read different strings, the text has a line for each.
        """
        kept = [column for column in sorted(row) if any(token.is_real for token in row[column])]
        number = {(t.reading.encoder, t.position): i for i, column in enumerate(kept) for t in row[column]}
        spelled = [self.tokenizers[row[c][0].reading.encoder].convert_ids_to_tokens(row[c][0].id) for c in kept]
        whole = ""
        starts: dict[str, int] = {}
        words: dict[tuple[int, int], set[int]] = {}
        special = set(range(len(kept)))
        read = {token.reading.encoder: token for tokens in row.values() for token in tokens}
        for encoder, token in sorted(read.items()):
            string = self.string(branch, encoder, self._prompt_of(token.source))
            if string not in starts:
                starts[string] = len(whole) + bool(starts)
                whole += "\n" * bool(starts[string]) + string
            ids = token.reading.ids[token.text].tolist()
            aligned, own = align(string, self.tokenizers[encoder], ids)
            special -= {number[encoder, position] for position in own if (encoder, position) in number}
            for (start, end), positions in aligned.items():
                span = start + starts[string], end + starts[string]
                tokens = {number[encoder, position] for position in positions if (encoder, position) in number}
                words.setdefault(span, set()).update(tokens)
        found = tuple(Word(whole[s:e], s, e, tuple(sorted(tokens))) for (s, e), tokens in sorted(words.items()))
        return Text(whole, found, (*spelled, *beside), tuple(sorted(special))), kept

    def string(self, branch: str, encoder: str, text: int) -> str:
        """What an encoder was asked to read: "prompt_2" for "text_encoder_2" where one was given, else the prompt."""
        name = "prompt" if branch == "prompt" else "negative_prompt"
        for given in (name + encoder.removeprefix("text_encoder"), name):
            if strings := as_list(self.arguments.get(given)):
                return strings[text % len(strings)]
        return ""


def as_list(strings: Any) -> list[str]:
    """A string, several of them or None as a list."""
    return [] if strings is None else [strings] if isinstance(strings, str) else list(strings)


def _in_order(columns: Mapping[int, Matches], chosen: Iterable[Source]) -> Row:
    """For each column the tokens of these texts; of several equal ones of a text, the first after those before it."""
    last = dict.fromkeys(chosen, -1)
    row: Row = defaultdict(list)
    for column in sorted(columns):
        for source in last:
            if positions := columns[column].get(source):
                position = positions[bisect_right(positions, last[source]) % len(positions)]
                last[source] = position
                row[column].append(Token(*source, position))
    return row


def _as_bytes(marks: Tensor) -> list[bytes]:
    """Each vector of (n, CHANNELS) as bytes; equal vectors are equal bytes."""
    marks = marks + 0.0  # -0 is 0
    return [mark.tobytes() for mark in marks.contiguous().view(torch.uint8).numpy()]


Spans = Sequence[tuple[int, int]]
Positions = dict[tuple[int, int], tuple[int, ...]]


def align(string: str, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[Positions, set[int]]:
    """Words of a string, by their characters -> their positions among the ids that an encoder read.

    A pipeline may put the string into a template, cut it, put a space before it or make it lower case. Also returns the
    positions of all that is the string's, with punctuation; the others are start, end and template.
    """
    spans = [match.span() for match in WORD.finditer(string)]
    found, own = _by_ids(string, tokenizer, ids, spans) or _by_characters(string, tokenizer, ids, spans)
    found = _with_vectors(found, tokenizer.convert_ids_to_tokens(list(ids)))
    return found, own.union(*found.values())


def _by_ids(
    string: str, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], spans: Spans
) -> tuple[Positions, set[int]] | None:
    """Found where the string's own ids are among the ids in a row; the last time, as templates say most before it."""
    if not tokenizer.is_fast:
        return None
    indent = len(string) - len(string.lstrip())
    for variant, shift in ((string, 0), (" " + string, -1), (string.lower().strip(), indent)):
        read = tokenizer.backend_tokenizer.encode(variant, add_special_tokens=False)
        is_real = [bool(real) for real in read.attention_mask]  # it pads as the pipeline has told it to
        own, offsets = list(compress(read.ids, is_real)), list(compress(read.offsets, is_real))
        starts = (i for i in range(len(ids) - len(own), -1, -1) if list(ids[i : i + len(own)]) == own)
        if own and (start := next(starts, None)) is not None:
            offsets = [(max(0, first + shift), max(0, last + shift)) for first, last in offsets]
            found = {span: tuple(start + i for i in tokens_of(span[0], span[1], offsets)) for span in spans}
            return found, set(range(start, start + len(own)))
    return None


def _by_characters(
    string: str, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], spans: Spans
) -> tuple[Positions, set[int]]:
    """Found by what each id spells, without spaces and case; also where only a beginning or parts were read."""
    spelled = ""
    owners: list[list[int]] = []
    part: list[int] = []  # positions of bytes that are no character yet
    for position, token in enumerate(ids):
        if token in tokenizer.all_special_ids:
            part = []
            continue
        part = [*part[-3:], position]
        text = tokenizer.decode([ids[i] for i in part])
        if text and "\ufffd" not in text:
            spelled += (piece := _squeezed(text))
            owners += [part] * len(piece)
            part = []
    place, wanted = {}, ""  # character of the string -> place in `wanted`
    for at, character in enumerate(string):
        if piece := _squeezed(character):
            place[at], wanted = len(wanted), wanted + piece
    if (start := spelled.rfind(wanted)) >= 0:
        matched = {i: start + i for i in range(len(wanted))}
    else:
        blocks = difflib.SequenceMatcher(None, wanted, spelled, autojunk=False).get_matching_blocks()
        matched = {block.a + i: block.b + i for block in blocks if block.size > 1 for i in range(block.size)}
    found: Positions = {}
    for first, last in spans:
        places = [matched[place[at]] for at in range(first, last) if at in place and place[at] in matched]
        found[first, last] = tuple(sorted({position for i in places for position in owners[i]}))
    return found, {position for i in matched.values() for position in owners[i]}


def _squeezed(text: str) -> str:
    """A text without spaces, in lower case, in a form that tokenizers make of it."""
    return "".join(normalize("NFKC", text).casefold().split())


def _with_vectors(found: Positions, tokens: Sequence[str]) -> Positions:
    """Words with all vectors of a learnt token: diffusers writes "<cat> <cat>_1" where a prompt says "<cat>"."""
    for span, positions in found.items():
        for position in positions:
            more = 1
            while tokens[position + more : position + more + 1] == [f"{tokens[position]}_{more}"]:
                found[span] = (*found[span], position + more)
                more += 1
    return found
