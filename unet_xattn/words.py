"""The words of a prompt, and the tokens of a word or phrase.

Any tokenizer with character offsets works (the fast ones of transformers). Words are parts of the text as it was
typed, and a token belongs to every word whose characters it covers.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from numbers import Integral
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import regex

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Letters and digits, also those that NFKC makes of a sign, as a tokenizer does ("™" is read as "tm").
_COMPATIBLE = r"[\p{NFKC_QC=No}--\p{NFC_QC=No}]"  # the others are signs with marks, such as notes
_LETTER = rf"\p{{L}}\p{{N}}\p{{Pc}}[\p{{So}}&&{_COMPATIBLE}]"
# Marks, and the two joiners that choose the shape of a letter, belong to the letter before them.
_RUN = rf"[{_LETTER}--\p{{Han}}][{_LETTER}\p{{M}}\u200c\u200d--\p{{Han}}]*+"
# Hyphens, apostrophes and the like, and characters without a shape, but not the space of no width.
_INSIDE = r"[-‐‑'’·׳״[\p{Cf}--\u200b]]"
# An emoji is all characters that are shown as one picture: flags, families, keys, with their colours. The key of a
# digit is a digit with marks, and letters may follow it, as for a tokenizer. "▁" is a space to most tokenizers.
_SYMBOL = rf"(?=[\p{{So}}\p{{Emoji_Presentation}}--[{_COMPATIBLE}▁]]|[#*]\uFE0F?\u20E3)\X"

WORD = regex.compile(rf"\p{{Han}}\p{{M}}*|{_SYMBOL}|{_RUN}(?:{_INSIDE}{_RUN})*", regex.V1)
"""A word: a Han character; an emoji or another symbol that is a picture; or a run of letters and digits of any script
with their marks, and with single hyphens, apostrophes or joiners inside. Punctuation and the signs of mathematics and
of currencies are not words. Scripts written without spaces, except Han, are not divided further."""


SPECIAL, PADDING, PICTURE, OTHER = "[special]", "[padding]", "[picture]", "[other]"
"""Names of what is read besides words: the tokens for start, end and a template; the padding; the picture's own
positions, where a model has them among the keys; and all tokens that were not chosen. The first three are no text."""

CONCEPTS = "concepts"
"""The branch of a recording in which concepts stand beside the prompt; the others are "prompt" and "negative"."""


@dataclass(frozen=True)
class Word:
    """A word of the prompt: its text, its characters [start, end) in the prompt, and the positions of its tokens.

    A word that was cut off, because the text was longer than its encoder reads, has no tokens.
    """

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Text:
    """A text as it was typed, its words, and its tokens as the tokenizer spells them.

    Where encoders read different strings, the text has a line for each. Named columns (`PADDING`) follow the tokens.
    `special` are the positions of tokens that stand for nothing in the text: start, end and template.
    """

    text: str
    words: tuple[Word, ...]
    tokens: tuple[str, ...]
    special: tuple[int, ...] = ()

    @property
    def named(self) -> dict[str, tuple[int, ...]]:
        """Name of what is read besides words, of those that there are -> its positions among the tokens."""
        beside = {name: (self.tokens.index(name),) for name in (PADDING, PICTURE, OTHER) if name in self.tokens}
        return ({SPECIAL: self.special} if self.special else {}) | beside

    @property
    def own(self) -> list[int]:
        """The positions of the tokens that are text: words and punctuation."""
        beside = {*self.special, *(i for i, token in enumerate(self.tokens) if token in (PADDING, PICTURE))}
        return [i for i in range(len(self.tokens)) if i not in beside]

    def is_whole(self) -> bool:
        """Whether its words are parts of it, and their tokens are its own."""
        texts = isinstance(self.text, str) and all(isinstance(token, str) for token in self.tokens)
        known = texts and all(is_index(token, len(self.tokens)) for token in self.special)
        return known and all(
            0 <= word.start < word.end <= len(self.text)
            and self.text[word.start : word.end] == word.text
            and all(is_index(token, len(self.tokens)) for token in word.tokens)
            for word in self.words
        )


def is_index(value: Any, count: int) -> bool:
    """Whether a value is a whole number in [0, count), of Python or of numpy."""
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < count


def is_one_of(value: Any, names: Collection[str]) -> bool:
    """Whether a value is a text, and one of these."""
    return isinstance(value, str) and value in names


def items(value: Any) -> list[Any]:
    """The values of a collection, an array or a tensor; a text, or what has no values, as a list of one."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, Collection) and not isinstance(value, str) else [value]


def shown(value: Any, most: int = 40) -> str:
    """Any value as a message shows it: in one line of at most `most` characters."""
    try:
        text = str(value)
    except Exception:  # Python writes no number of more than 4,300 digits, and a class may raise anything
        text = f"<{type(value).__name__}>"
    return " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * most]).split())[:most]


def tokens_of(start: int, end: int, offsets: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Positions of the tokens that cover any of the characters [start, end); special tokens cover none."""
    return tuple(i for i, (s, e) in enumerate(offsets) if s < end and e > start and e > s)


def split_words(prompt: str, tokenizer: "PreTrainedTokenizerBase") -> list[Word]:
    """The words of a prompt in order, as `WORD` defines them. Punctuation has tokens but is not a word.

    Raises:
        ValueError: the prompt has half a character, which no tokenizer reads.
    """
    offsets = _encoded(prompt, tokenizer, return_offsets_mapping=True)["offset_mapping"]
    spans = [match.span() for match in WORD.finditer(prompt)]
    return [Word(prompt[start:end], start, end, tokens_of(start, end, offsets)) for start, end in spans]


def read_text(text: str, tokenizer: "PreTrainedTokenizerBase") -> Text:
    """A text with its words and tokens. Raises as `split_words` does."""
    read = _encoded(text, tokenizer, return_special_tokens_mask=True)
    special = tuple(i for i, is_special in enumerate(read["special_tokens_mask"]) if is_special)
    tokens = tokenizer.convert_ids_to_tokens(read["input_ids"])
    return Text(text, tuple(split_words(text, tokenizer)), tuple(tokens), special)


def _encoded(text: str, tokenizer: "PreTrainedTokenizerBase", **asked: bool) -> Mapping[str, Any]:
    if half := regex.search(r"\p{Cs}", text):
        raise ValueError(f"character {half.start() + 1} of the text is half a character: delete it")
    return tokenizer(text, verbose=False, **asked)


def as_read(text: str) -> str:
    """A text in the form our tokenizers read: composed characters, compatible ones made equal, in small letters."""
    return normalize("NFKC", text).lower()


def chosen(text: Text, phrases: Sequence[str]) -> tuple[Text, list[int]]:
    """A text in which only the tokens of these words and phrases, of the padding and of the picture are apart.

    The special tokens, if any, are one token, `SPECIAL`, and all others one more, the last, `OTHER`. Phrases that the
    text does not have are passed over. Also returns the new position of each token.
    """
    kept = {i for i, token in enumerate(text.tokens) if token in (PADDING, PICTURE)}
    for phrase in phrases:
        for occurrence in range(len(_occurrences(phrase, text.text, [(w.start, w.end) for w in text.words]))):
            kept |= set(find_phrase(phrase, text.text, text.words, occurrence))
    order, special = sorted(kept), set(text.special) - kept
    beside = (SPECIAL, OTHER) if special else (OTHER,)
    last = len(order) + len(beside) - 1
    place = [order.index(i) if i in kept else len(order) if i in special else last for i in range(len(text.tokens))]
    words = [w for w in text.words if w.tokens and kept.issuperset(w.tokens)]
    words = [Word(w.text, w.start, w.end, tuple(place[i] for i in w.tokens)) for w in words]
    named = (*(text.tokens[i] for i in order), *beside)
    return Text(text.text, tuple(words), named, (len(order),) if special else ()), place


def beside(text: Text, columns: int, concepts: Sequence[tuple[str, Sequence[str]]]) -> tuple[Text, list[int]]:
    """The text of a reading in which concepts stand beside a text, after its first `columns` tokens and their padding.

    Its words are the concepts: each is one word, with all its tokens, which are the first ones. What else was read is
    as in `chosen`: the words of the text are in `OTHER`, the last. Also returns the new position of each token.

    Args:
        concepts: the name of each, and its tokens as the tokenizer spells them.
    """
    words: list[Word] = []
    spelled: list[str] = []
    whole = ""
    for name, tokens in concepts:
        start = len(whole) + bool(whole)
        whole += "\n" * bool(whole) + name
        words.append(Word(name, start, len(whole), tuple(range(len(spelled), len(spelled) + len(tokens)))))
        spelled += tokens
    of = {i: name for name, own in text.named.items() if name != OTHER for i in own}
    names = [name for name in text.named if name != OTHER]
    tokens = (*spelled, *names, OTHER)
    place = [tokens.index(of[i], len(spelled)) if i in of else len(tokens) - 1 for i in range(columns)]
    special = (len(spelled),) if SPECIAL in names else ()
    return Text(whole, tuple(words), tokens, special), [*place, *range(len(spelled))]


def find_concept(name: str, concepts: Sequence[Word]) -> Word | None:
    """The concept of this name, compared as by `find_phrase`."""
    return next((word for word in concepts if _folded(word.text.strip()) == _folded(name.strip())), None)


def unknown_words(prompt: str, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The words of a prompt that were not in the model's training captions, in order.

    Our tokenizers store the words of their training captions (`known_words`). For other tokenizers, a word is unknown
    if the vocabulary cannot spell it.
    """
    words = split_words(prompt, tokenizer)
    if (stored := tokenizer.init_kwargs.get("known_words")) is not None:
        known = frozenset(map(as_read, stored))
        return [word.text for word in words if as_read(word.text) not in known]
    ids = tokenizer(prompt, verbose=False)["input_ids"]
    return [word.text for word in words if any(ids[i] == tokenizer.unk_token_id for i in word.tokens)]


def phrase_spans(query: str, prompt: str) -> list[tuple[int, int]]:
    """The characters [start, end) of each occurrence of a word or phrase in a prompt, compared as by `find_phrase`."""
    return _occurrences(query, prompt, [match.span() for match in WORD.finditer(prompt)])


def check_concepts(concepts: Sequence[str]) -> None:
    """Raise ValueError unless these are names of different things."""
    for name in concepts:
        if not WORD.search(name):
            raise ValueError(f"the concept {shown(name)!r} has no word: name what may be in the picture")
    for one, other in combinations(concepts, 2):
        if _folded(one.strip()) == _folded(other.strip()):
            raise ValueError(f"the concept {shown(one)!r} is named twice")


def _occurrences(query: str, prompt: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where a phrase occurs in a prompt with words at these spans; occurrences may overlap."""
    query = query.strip()
    asked = [match.span() for match in WORD.finditer(query)]
    if not asked or (asked[0][0], asked[-1][1]) != (0, len(query)):
        return []
    wanted, pieces = _pieces(query, asked), _pieces(prompt, spans)
    last = len(asked) - 1
    return [
        (spans[i][0], spans[i + last][1])
        for i in range(len(spans) - last)
        if pieces[2 * i : 2 * i + len(wanted)] == wanted
    ]


def _pieces(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The words at these spans and, between each two of them, the text that separates them, all folded."""
    return [_folded(text[start:end]) for start, end in pairwise(edge for span in spans for edge in span)]


def _folded(text: str) -> str:
    """A text that is equal for spellings in any case, composed or decomposed, with any spaces."""
    text = normalize("NFKC", normalize("NFKC", text).casefold())
    text = text.replace("i\u0307", "i").replace("ı", "i")  # Turkish has İ i and I ı
    return regex.sub(r"\s+", " ", text)


def find_phrase(query: str, prompt: str, words: Sequence[Word], occurrence: int = 0) -> tuple[int, ...]:
    """Positions of the tokens of a word or phrase.

    Case, the kind of spaces, and whether characters are composed ("é" or "e" with U+0301) are ignored.

    Args:
        words: the words of the prompt, as `split_words` gave them.
        occurrence: which occurrence, from 0, if the prompt has several.

    Raises:
        ValueError: the prompt does not have it, or has fewer occurrences.
    """
    places = _occurrences(query, prompt, [(word.start, word.end) for word in words])
    if not places:
        raise ValueError(
            f"{shown(query, 80)!r} is not in the prompt; its words are: {', '.join(w.text for w in words)}"
        )
    if not is_index(occurrence, len(places)):
        raise ValueError(
            f"{shown(query, 80)!r} occurs {len(places)} time(s) in the prompt: "
            f"occurrence {shown(occurrence)} does not exist"
        )
    start, end = places[occurrence]
    return tuple(sorted({t for w in words if w.start < end and w.end > start for t in w.tokens}))
