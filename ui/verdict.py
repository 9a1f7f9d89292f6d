"""What the page says of a picture: which statements of its prompt it shows, as far as exact rules can tell.

The judge of `pipelines.scenes` measures models and is strict: it names a colour only near the renderer's own. Beside
the page's verdict a person sees the picture. So here a colour has the name that a person would give it, the prompt is
read as people type, and where the rules cannot tell, the verdict says so.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipelines.scenes.captions import CHINESE_SIZES, COUNT_WORDS, SIZE_WORDS, Lexicon
from pipelines.scenes.emoji_font import EMOJI_GROUNDS, FontError
from pipelines.scenes.everyday_words import THINGS, Name
from pipelines.scenes.judge import Check, compare
from pipelines.scenes.scene import COLOURS, Object, Scene
from pipelines.scenes.shapes import SHAPES
from pipelines.scenes.sight import UNKNOWN, Palette, Sight, ground_of
from pipelines.scenes.typed import article
from pipelines.scenes.typed_words import CHINESE_PLACES, PLACES, TYPED_CHINESE_RELATIONS
from pipelines.scenes.worlds import WORLDS, World
from ui.texts import Message, text

CLEARLY = 0.75
"""A colour's name is sure if its named colour is at most this share as far away as the second nearest."""

LIGHTNESS = 0.5
"""The weight of a difference in lightness beside one in hue: a light and a dark green are both green to people."""


@dataclass(frozen=True)
class Statement:
    """One statement of a prompt, and whether the picture shows it; None where the rules cannot tell."""

    says: Message
    ok: bool | None

    def as_json(self) -> dict[str, Any]:
        """For the page and the API; "text" is English."""
        key, values = self.says
        return {"says": [key, values], "text": text(key, **values), "ok": self.ok}


def verdict(prompt: str, picture: np.ndarray, data: str | None = None) -> list[Statement] | None:
    """Each statement of a prompt about a picture (h, w, 3) uint8; None if the prompt names nothing that can be checked.

    Also None for a scene of emoji if the emoji font, which the rules need, is not installed. `data` is the world of the
    scene, or None for the first that has such a scene.
    """
    scene, whole = read(prompt, data)
    if scene is None:
        return None
    world = WORLDS[scene.data]
    try:
        sight, doubtful = _named(world.see(picture), picture, world.lexicon)
    except FontError:
        return None
    unclear = any(seen.shape == UNKNOWN for seen in sight.objects)
    checks = compare(scene, sight).checks
    missing = tuple(check.text for check in checks if check.fact == "shape" and not check.ok)
    statements = []
    for check in checks:
        if not _is_stated(check, prompt) or (check.fact == "count" and not whole):
            continue
        if check.fact in ("colour", "size") and check.text.partition(": ")[0].endswith(missing):
            continue  # what is not there has no colour
        unsure = unclear and check.fact not in ("ground", "colour")
        unsure |= check.fact == "colour" and (unclear or check.text.rpartition(": ")[2] in doubtful)
        statements.append(Statement(_says(check, world.lexicon), None if unsure else check.ok))
    return statements if whole else [*statements, Statement(("verdict.rest", {}), None)]


# Reading a prompt


def read(prompt: str, data: str | None = None) -> tuple[Scene | None, bool]:
    """The scene that a prompt describes, and whether it describes all that the prompt says.

    A prompt that no grammar reads may still name objects: these are the scene, without number and relation.
    """
    worlds = WORLDS if data is None else {data: WORLDS[data]}
    for world in worlds.values():
        if scene := world.parse(prompt) or world.parse(_tidied(prompt, world.lexicon)):
            return scene, True
    named = {name: _objects(prompt, world) for name, world in worlds.items()}
    name = max(named, key=lambda name: len(named[name]))
    return (Scene("three", tuple(named[name]), "white", data=name), False) if named[name] else (None, False)


def _tidied(prompt: str, lexicon: Lexicon) -> str:
    """A prompt with the articles and the "and" that people leave out, for the grammar of captions."""
    line = re.sub(r"\bgrey\b", "gray", " ".join(prompt.lower().split()).rstrip(" .!?…"))

    def counted(match: re.Match) -> str:
        before, thing, noun = match["before"] or "", match["thing"], match["noun"]
        if before.strip() in ("a", "an", *COUNT_WORDS.values()):
            return match[0]
        if noun not in lexicon.nouns:  # several, and nobody said how many
            return match[0]
        return ("" if before.strip() in ("the", "one") else before) + "a " + thing

    described = "|".join([*lexicon.colours, *(word for words in SIZE_WORDS.values() for word in words)])
    named = group_pattern(lexicon, {*lexicon.nouns, *(noun.plural for noun in lexicon.nouns.values())})
    line = re.sub(rf"(?P<before>\b(?!(?:{described})\b)\w+ )?{named}", counted, line)
    return line if " and " in line else " and ".join(line.rsplit(", ", 1))


def _objects(prompt: str, world: World) -> list[Object]:
    """The different objects that an English prompt names, each once. Only shapes have a colour to be checked."""
    names = {
        text: thing for thing, said in names_of(world).items() for name in said for text in (name.text, name.plural)
    }
    sizes = {word: size for size, words in SIZE_WORDS.items() for word in words}
    found = []
    for match in re.finditer(group_pattern(world.lexicon, names), prompt.lower()):
        thing = names[match["noun"]]
        colour = match["colour"] or "" if thing in SHAPES else ""
        found.append(Object(thing, colour, sizes.get(match["size"], "medium")))
    return list(dict.fromkeys(found))


def names_of(world: World) -> dict[str, tuple[Name, ...]]:
    """The English names of every thing of a world, the usual one first."""
    if world.name == "everyday":
        return {thing: THINGS[thing].english for thing in world.lexicon.nouns}
    return {thing: (Name(thing, noun.plural),) for thing, noun in world.lexicon.nouns.items()}


def group_pattern(lexicon: Lexicon, nouns: Iterable[str]) -> str:
    """The pattern of an object as people name it: size and colour may be missing."""
    sizes = any_of({word for words in SIZE_WORDS.values() for word in words})
    colour = rf"(?:(?P<colour>{any_of(lexicon.colours)}) )?" if lexicon.colours else "(?P<colour>)"
    return rf"(?P<thing>(?:\b(?P<size>{sizes}) )?\b{colour}\b(?P<noun>{any_of(nouns)}))\b"


def any_of(words: Iterable[str]) -> str:
    """The pattern of any of these words, the longest first."""
    return "|".join(sorted(map(re.escape, filter(None, words)), key=len, reverse=True))


def _is_stated(check: Check, prompt: str) -> bool:
    """Whether a prompt says what a check checks: a medium size and a white ground may be its defaults."""
    words, value = prompt.lower(), check.text.rpartition(": ")[2]
    if check.fact == "size":
        return value != "medium" or any(word in words for word in (*SIZE_WORDS["medium"], *CHINESE_SIZES["medium"]))
    return check.fact != "ground" or bool(re.search(rf"ground|背景|\bon (?:an? )?{value}\b", words))


# Colours


def _named(sight: Sight, picture: np.ndarray, lexicon: Lexicon) -> tuple[Sight, set[str]]:
    """The shapes with the names that a person would give their colours, and the names that are doubtful."""
    objects, doubtful = [], set()
    for seen, mask in zip(sight.objects, sight.masks, strict=True):
        if seen.colour:  # emoji have none
            name, doubt = nearest_colour(np.median(picture[mask >= min(0.9, mask.max())], axis=0), COLOURS)
            seen = replace(seen, colour=name)
            doubtful |= doubt
        objects.append(seen)
    grounds = {name: EMOJI_GROUNDS[name] for name in lexicon.grounds}
    ground, _ = nearest_colour(ground_of(picture, grounds), grounds)
    return Sight(tuple(objects), sight.masks, ground), doubtful


def nearest_colour(colour: np.ndarray, palette: Palette) -> tuple[str, set[str]]:
    """The name of a colour (3,) in [0, 255]: the nearest of a palette by OKLab; both names if two are about as near."""
    apart = _oklab(np.array(list(palette.values()))) - _oklab(colour)
    near = np.linalg.norm(apart * (LIGHTNESS, 1, 1), axis=1)
    first, second = near.argsort()[:2]
    names = list(palette)
    return names[first], {names[first], names[second]} if near[first] > CLEARLY * near[second] else set()


def _oklab(colours: np.ndarray) -> np.ndarray:
    """Colours (..., 3) of sRGB in [0, 255] in OKLab, where equal distances look equally different (Ottosson, 2020)."""
    part = np.asarray(colours, float) / 255
    light = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    to_cones = [[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]]
    to_lab = [[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]]
    return np.cbrt(light @ np.array(to_cones).T) @ np.array(to_lab).T


# Words


def _says(check: Check, lexicon: Lexicon) -> Message:
    """A check as a sentence, with the names of its things in each language."""
    if check.fact == "count":
        return "verdict.count", {"count": check.text.rpartition(": ")[2]}
    if check.fact == "shape":
        one = f"{article(check.text)} {check.text}" if lexicon.nouns[check.text].plural else check.text
        return "verdict.shape", {"thing": _both(check.text, lexicon) | {"en": one[0].upper() + one[1:]}}
    thing, _, value = check.text.partition(": ")
    if check.fact == "relation" and value:
        where = {"en": PLACES[value][0], "zh": CHINESE_PLACES[value][0]}
        return "verdict.place", {"thing": _both(thing, lexicon), "where": where}
    if check.fact == "relation":
        relation = next(name for name in TYPED_CHINESE_RELATIONS if f" {name} " in check.text)
        first, _, others = check.text.partition(f" {relation} ")
        second = [_both(other, lexicon)["zh"] for other in others.split(" and ")]
        chinese = ("" if relation in ("beside", "between") else "的") + TYPED_CHINESE_RELATIONS[relation][0]
        sides = {"first": _both(first, lexicon), "second": {"en": others, "zh": "和".join(second)}}
        return "verdict.relation", sides | {"where": {"en": relation, "zh": chinese}}
    about = {} if check.fact == "ground" else {"thing": _both(thing, lexicon)}
    return f"verdict.{check.fact}", about | {"value": _both(value, lexicon)}


def _both(words: str, lexicon: Lexicon) -> dict[str, str]:
    """A thing of the world, such as "red circle", in English and Chinese."""
    chinese = {name: noun.chinese[0] for name, noun in lexicon.nouns.items()}
    chinese |= {size: names[0] for size, names in CHINESE_SIZES.items()} | dict(lexicon.colours) | dict(lexicon.grounds)
    if words in chinese:
        return {"en": words, "zh": chinese[words]}
    colour, _, noun = words.partition(" ")
    return {"en": words, "zh": f"{chinese.get(colour, colour)}的{chinese.get(noun, noun)}"}
