"""A prompt without one of its words: without the thing that the word names, where a world's words tell what that is."""

import re

from pipelines.edits import find_first
from pipelines.scenes.captions import CHINESE_NUMERALS, CHINESE_SIZES, COUNT_WORDS, is_chinese
from pipelines.scenes.typed import article
from pipelines.scenes.worlds import WORLDS, World
from ui.verdict import any_of, group_pattern, names_of
from unet_xattn.words import WORD, shown


def without(prompt: str, phrase: str, data: str | None) -> str:
    """The prompt without a phrase. If that names a thing of the world `data`, the other things and the ground stay.

    Raises:
        ValueError: the prompt does not have it, or has nothing else.
    """
    start, end = find_first(phrase, prompt)
    things = list(re.finditer(_thing(prompt, WORLDS[data]), prompt, re.IGNORECASE)) if data in WORLDS else []
    names = [thing for thing in things if start < thing.end("noun") and thing.start("noun") < end <= thing.end()]
    if names:
        rest = _listed([_with_article(thing) for thing in things if thing not in names], prompt)
        ground = re.search(r"(,| on a| against a)? \w+ (back)?ground|[,，](在|背景是)?\w{2}(背景上?|的)", prompt)
        left = rest + (ground.group() if ground else "")
    else:
        colours = [thing.span("look") for thing in things if "look" in thing.re.groupindex and thing["look"]]
        start, end = next(((a, b) for a, b in colours if a <= start and end <= b), (start, end))
        rest = left = " ".join((prompt[:start] + prompt[end:]).split())
    if not WORD.search(rest):
        raise ValueError(f"without {shown(phrase, 80)!r} nothing is left to draw: replace it instead")
    return left


def _thing(prompt: str, world: World) -> str:
    """The pattern of a thing as prompts name it: number, size and colour may be missing."""
    if not is_chinese(prompt):
        nouns = [text for names in names_of(world).values() for name in names for text in (name.text, name.plural)]
        counts = any_of(["a", "an", "the", "one", "four", *COUNT_WORDS.values()])
        return rf"(?:\b(?P<count>{counts}) )?{group_pattern(world.lexicon, nouns)}"
    kinds = world.lexicon.nouns.values()
    count = rf"[{''.join(CHINESE_NUMERALS.values())}四](?:{any_of({'个', *(noun.measure for noun in kinds)})})"
    size = any_of(word for words in CHINESE_SIZES.values() for word in words)
    colour = rf"(?P<look>(?:{any_of(world.lexicon.colours.values())})的?)?" if world.lexicon.colours else "(?P<look>)"
    noun = any_of(name for noun in kinds for name in noun.chinese)
    return rf"(?P<count>{count})?(?:(?:{size})的?)?{colour}(?P<noun>{noun})"


def _with_article(thing: re.Match) -> str:
    text = thing.group()
    if thing["count"] or is_chinese(text):
        return text
    return f"{article(text)} {text}"


def _listed(things: list[str], prompt: str) -> str:
    comma, last = ("、", "和") if is_chinese(prompt) else (", ", " and ")
    return comma.join(things[:-1]) + last * (len(things) > 1) + "".join(things[-1:])
