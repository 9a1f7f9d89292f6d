"""What a model can draw: a sentence, examples, the list of its words, and the nearest of them to another word.

All of it comes from the model's tokenizer, which stores the words of its training captions, and from the lexicons of
the worlds of scenes.
"""

import random
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import gradio as gr
import numpy as np
from PIL import ImageColor
from transformers import PreTrainedTokenizerFast

from pipelines.scenes.captions import COUNT_WORDS, RELATIONS, SIZE_WORDS
from pipelines.scenes.scene import COLOURS
from pipelines.scenes.shapes import SHAPES
from pipelines.scenes.typed import article
from pipelines.scenes.typed_words import PLACES, TYPED_RELATIONS
from pipelines.scenes.worlds import WORLDS, World
from ui.component import component
from ui.texts import texts_of
from ui.verdict import names_of, nearest_colour
from unet_xattn.words import as_read, unknown_words

EXAMPLES = {
    "shapes": [
        "a red circle left of a blue square",
        "three small green triangles on a gray background",
        "a large purple star above a small orange heart",
        "一个红色的圆形在蓝色方块的左边",
    ],
    "everyday": [
        "a big red heart above a cat",
        "two cats and a moon",
        "a rocket in the top left",
        "狗在房子旁边",
    ],
    "emoji": [
        "a duck left of a big frog",
        "two rockets on a black background",
        "a cat above a small pizza",
        "一只猫在一个苹果的右边",
    ],
}
"""World -> prompts that show what its models can draw."""

NAMED = 4
"""The number of things that the sentence names."""


def vocabulary(value: dict[str, Any]) -> gr.HTML:
    """The component. Its value is the result of `describe`.

    Its event "select" carries {"prompt": an example} or {"surprise": true}, its event "word" {"word": a word}.
    """
    return component(__name__, value, texts=texts_of("vocabulary."))


def describe(tokenizer: PreTrainedTokenizerFast, prompts: Iterable[str] = ()) -> dict[str, Any]:
    """What a model with this tokenizer can draw.

    Args:
        prompts: examples of the model's own, for a model that knows none of the worlds.

    Returns:
        sentence: a message. groups: (key of a heading, words) of all words it knows. examples: prompts.
    """
    known = _known(tokenizer)
    if known is None:
        return {"sentence": ["vocabulary.any", {}], "groups": [], "examples": list(prompts)[:4], "surprise": False}
    world = _world(tokenizer)
    if world is None:
        words = ", ".join(sorted(word for word in known if len(word) > 3)[:NAMED])
        sentence: list[Any] = ["vocabulary.words", {"count": len(known), "some": words}]
        groups = [["vocabulary.all", sorted(known)]]
        return {"sentence": sentence, "groups": groups, "examples": list(prompts)[:4], "surprise": False}
    lexicon = world.lexicon
    nouns = list(lexicon.nouns.values())
    named = nouns[:: max(1, len(nouns) // NAMED)][:NAMED]
    some = {
        "en": ", ".join(noun.plural for noun in named if noun.plural),
        "zh": "、".join(noun.chinese[0] for noun in named),
    }
    lively = world.name == "everyday"  # its captions say where a thing is, and count to four
    relations = [*TYPED_RELATIONS.values(), *PLACES.values()] if lively else [*RELATIONS.values()]
    groups = [
        ["vocabulary.things", [name.text for names in names_of(world).values() for name in names]],
        ["vocabulary.colours", list(lexicon.colours)],
        ["vocabulary.numbers", ["a", *COUNT_WORDS.values(), *(["four"] if lively else [])]],
        ["vocabulary.sizes", [word for words in SIZE_WORDS.values() for word in words]],
        ["vocabulary.relations", [word for words in relations for word in words]],
        ["vocabulary.grounds", [f"on a {ground} background" for ground in lexicon.grounds]],
        ["vocabulary.chinese", [noun.chinese[0] for noun in lexicon.nouns.values()]],
    ]
    about = {"count": len(lexicon.nouns), "some": some, "colours": len(lexicon.colours)}
    key = "vocabulary.lively" if lively else "vocabulary.coloured" if lexicon.colours else "vocabulary.drawn"
    shown = [[name, [word for word in words if not unknown_words(word, tokenizer)]] for name, words in groups]
    return {
        "sentence": [key, about],
        "groups": [group for group in shown if group[1]],
        "examples": EXAMPLES.get(world.name, list(prompts)[:4]),
        "surprise": True,
    }


def surprise(tokenizer: PreTrainedTokenizerFast, choose: random.Random) -> str:
    """A prompt of words that the model knows: two things in a relation, or a few of one kind.

    Raises:
        ValueError: the model knows none of the worlds.
    """
    world = _world(tokenizer)
    if world is None:
        raise ValueError("this model has no scenes of its own to choose from: type a prompt")
    lexicon = world.lexicon
    first, second = choose.sample(list(lexicon.nouns), 2)
    sizes = ["", "", *(words[0] for size, words in SIZE_WORDS.items() if size != "medium")]

    def described(noun: str, name: str) -> str:
        colours = [colour for colour in lexicon.colours if noun in SHAPES] or [""]  # emoji have colours of their own
        return " ".join(filter(None, (choose.choice(sizes), choose.choice(colours), name)))

    def one(noun: str) -> str:
        words = described(noun, noun)
        return f"{article(words)} {words}" if lexicon.nouns[noun].plural else words

    if (several := lexicon.nouns[first].plural) and choose.random() < 0.3:
        ground = choose.choice(list(lexicon.grounds))
        return f"{choose.choice(list(COUNT_WORDS.values()))} {described(first, several)} on a {ground} background"
    relation = choose.choice([words[0] for words in RELATIONS.values()])
    return f"{one(first)} {relation} {one(second)}"


def nearest(word: str, tokenizer: PreTrainedTokenizerFast) -> str | None:
    """The word that a model knows and that is most like one it does not know, by colour or by spelling; or None."""
    known, asked = _known(tokenizer) or frozenset(), as_read(word)
    named = ImageColor.colormap.get(asked)
    if named and any(colour in known for colour in COLOURS):
        name, _ = nearest_colour(np.array(ImageColor.getrgb(str(named))[:3]), COLOURS)
        return name if name in known else None
    spelled = get_close_matches(asked, [one for one in known if len(one) > 2], 1, cutoff=0.75)
    return spelled[0] if spelled else None


def _known(tokenizer: PreTrainedTokenizerFast) -> frozenset[str] | None:
    """The words of the model's training captions; None for a tokenizer that stores none."""
    stored = tokenizer.init_kwargs.get("known_words")
    return None if stored is None else _folded(tuple(stored))


@lru_cache(maxsize=32)
def _folded(words: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(as_read, words))


def _world(tokenizer: PreTrainedTokenizerFast) -> World | None:
    """The world whose things and colours the model knows."""
    for world in reversed(WORLDS.values()):  # everyday things include the shapes
        needed = " ".join([*world.lexicon.nouns, *world.lexicon.colours, "left of"])
        if not unknown_words(needed, tokenizer):
            return world
    return None
