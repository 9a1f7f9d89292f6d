"""The words of a prompt, and the tokens of a word or phrase.

Any tokenizer with character offsets works (the fast ones of transformers). Words are parts of the text as it was
typed, and a token belongs to every word whose characters it covers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Each Han character is a word; elsewhere a word is letters and digits, with hyphens or apostrophes inside.
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+(?:[-'’][^\W{_HAN}]+)*")


@dataclass(frozen=True)
class Word:
    """A word of the prompt: its text, its characters [start, end) in the prompt, and the positions of its tokens."""

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Text:
    """A text as it was typed, its words, and its tokens as the tokenizer spells them."""

    text: str
    words: tuple[Word, ...]
    tokens: tuple[str, ...]


def tokens_of(start: int, end: int, offsets: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Positions of the tokens that cover any of the characters [start, end); special tokens cover none."""
    return tuple(i for i, (s, e) in enumerate(offsets) if s < end and e > start and e > s)


def split_words(prompt: str, tokenizer: "PreTrainedTokenizerBase") -> list[Word]:
    """The words of a prompt in order. Punctuation has tokens but is not a word."""
    offsets = tokenizer(prompt, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return [Word(m.group(), *m.span(), tokens_of(*m.span(), offsets)) for m in WORD.finditer(prompt)]


def read_text(text: str, tokenizer: "PreTrainedTokenizerBase") -> Text:
    """A text with its words and tokens."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text, verbose=False)["input_ids"])
    return Text(text, tuple(split_words(text, tokenizer)), tuple(tokens))


def unknown_words(prompt: str, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The words of a prompt that were not in the model's training captions, in order.

    Our tokenizers store the words of their training captions (`known_words`). For other tokenizers, a word is unknown
    if the vocabulary cannot spell it.
    """
    known = tokenizer.init_kwargs.get("known_words")
    if known is not None:
        known = frozenset(known)
        return [word.text for word in split_words(prompt, tokenizer) if word.text.lower() not in known]
    ids = tokenizer(prompt, verbose=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    return [w.text for w in split_words(prompt, tokenizer) if any(ids[i] == unknown for i in w.tokens)]


def phrase_spans(query: str, prompt: str) -> list[tuple[int, int]]:
    """The characters [start, end) of each occurrence of a word or phrase in a prompt, ignoring case."""
    pattern = re.compile(r"\s+".join(map(re.escape, query.split())), re.IGNORECASE)
    words = list(WORD.finditer(prompt))
    ends = {word.end() for word in words}
    # Matched at the start of each word, so that an occurrence may overlap the one before.
    matches = [pattern.match(prompt, word.start()) for word in words]
    return [m.span() for m in matches if m and m.end() in ends]


def find_phrase(query: str, prompt: str, words: Sequence[Word], occurrence: int = 0) -> tuple[int, ...]:
    """Positions of the tokens of a word or phrase, ignoring case.

    Args:
        occurrence: which occurrence, from 0, if the prompt has several.

    Raises:
        ValueError: the prompt does not have it, or has fewer occurrences.
    """
    places = phrase_spans(query, prompt)
    if not places:
        raise ValueError(f"{query!r} is not in the prompt; its words are: {', '.join(w.text for w in words)}")
    if not 0 <= occurrence < len(places):
        raise ValueError(
            f"{query!r} occurs {len(places)} time(s) in the prompt: occurrence {occurrence} does not exist"
        )
    start, end = places[occurrence]
    return tuple(sorted({t for w in words if w.start < end and w.end > start for t in w.tokens}))
