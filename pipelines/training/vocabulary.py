"""The tokenizer of a run, which its checkpoints keep, because the weights know words only by their ids."""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from pipelines.components import quiet
from pipelines.runs.checkpoint import shapes_in
from unet_xattn.words import as_read, split_words

TOKENIZER = "tokenizer.json"

EMBEDDING, DECODER = "text_encoder.embedding.weight", "text_encoder.decoder."
"""The weights with a row for each token, and the beginning of the decoder's, in a model with its own text encoder."""

SHOWN = 10
"""The most words in a message."""


def tokenizer_files(tokenizer: PreTrainedTokenizerFast) -> dict[str, bytes]:
    """The files of a tokenizer, name -> content, from which `load_tokenizer` makes it again."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer whose files lie in a folder."""
    with quiet():
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


class Kept(NamedTuple):
    """What a run's weights decide about its text encoder, whatever its data is by now.

    tokenizer: None where a frozen encoder has its own.
    translates: whether there is a decoder.
    lines: to print.
    """

    tokenizer: PreTrainedTokenizerFast | None
    translates: bool
    lines: list[str]


def kept_in(checkpoint: Path, out: Path) -> Kept:
    """What the run in `out` keeps, as of a checkpoint.

    Older versions did not save the tokenizer. Then it is that of the model in `out`, if that has as many tokens as the
    weights.

    Raises:
        ValueError: the tokenizer is not found.
    """
    shapes = shapes_in(checkpoint)
    translates = any(name.startswith(DECODER) for name in shapes)
    if EMBEDDING not in shapes:
        return Kept(None, translates, [])
    if (checkpoint / TOKENIZER).is_file():
        return Kept(load_tokenizer(checkpoint), translates, [])
    count, folder = shapes[EMBEDDING][0], out / "tokenizer"
    tokenizer = load_tokenizer(folder) if (folder / TOKENIZER).is_file() else None
    if tokenizer is None or len(tokenizer) != count:
        found = "no tokenizer" if tokenizer is None else f"one of {len(tokenizer):,} tokens"
        raise ValueError(
            f"{checkpoint} was saved by an older version, without its tokenizer of {count:,} tokens, and {folder} "
            f"holds {found}: start a run in another --out"
        )
    said = f"{checkpoint.name} was saved by an older version: the tokenizer is that of the model in {out}"
    return Kept(tokenizer, translates, [said])


def learn_words(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> list[str]:
    """Add the words of texts that will be trained on to those the tokenizer knows; returns lines to print.

    The ids of all tokens stay as they are: a new word is read in pieces that the vocabulary has. A word with a
    character that it lacks cannot be read, and stays unknown.
    """
    known = tokenizer.init_kwargs.get("known_words")
    if known is None:  # a vocabulary of others, which spells every word
        return []
    words = {as_read(word.text) for text in set(texts) for word in split_words(text, tokenizer)}
    new = sorted(words.difference(known))
    unread = [word for word in new if tokenizer.unk_token_id in tokenizer(word)["input_ids"]]
    readable = sorted(set(new).difference(unread))
    tokenizer.init_kwargs["known_words"] = sorted({*known, *readable})
    lines = [f"{_listed(readable)} new to the model's vocabulary, and read in pieces"] if readable else []
    return lines + ([f"warning: {_listed(unread)} unread: the model's vocabulary lacks letters"] if unread else [])


def _listed(words: list[str]) -> str:
    """Words as the subject of a message: their number, the first of them, and the verb."""
    shown = ", ".join(words[:SHOWN]) + (", …" if len(words) > SHOWN else "")
    return f"{len(words):,} word{'s' * (len(words) > 1)} ({shown}) {'are' if len(words) > 1 else 'is'}"
