"""What the page says of a picture: which statements of its prompt it shows, as far as exact rules can tell.

The judge of `pipelines.scenes` measures models and is strict: it names a colour only near the renderer's own. Beside
the page's verdict a person sees the picture. So here a colour has the name that a person would give it, the prompt is
read as people type, and where the rules cannot tell, the verdict says so.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipelines.scenes.captions import CHINESE_RELATIONS, CHINESE_SIZES, COUNT_WORDS, SIZE_WORDS, Lexicon
from pipelines.scenes.emoji_font import FontError
from pipelines.scenes.judge import Check, compare
from pipelines.scenes.scene import COLOURS, SHAPE_GROUNDS, Object, Scene
from pipelines.scenes.sight import UNKNOWN, Palette, Sight, ground_of
from pipelines.scenes.worlds import WORLDS
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
    try:
        sight = WORLDS[scene.data].see(picture)
    except FontError:
        return None
    doubtful: set[str] = set()
    if scene.data == "shapes":
        sight, doubtful = _named(sight, picture)
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
        statements.append(Statement(_says(check, WORLDS[scene.data].lexicon), None if unsure else check.ok))
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
    named = {name: _objects(prompt, world.lexicon) for name, world in worlds.items()}
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
    line = re.sub(rf"(?P<before>\b(?!(?:{described})\b)\w+ )?{_group(lexicon)}", counted, line)
    return line if " and " in line else " and ".join(line.rsplit(", ", 1))


def _objects(prompt: str, lexicon: Lexicon) -> list[Object]:
    """The different objects that an English prompt names, each once."""
    plurals = {noun.plural: name for name, noun in lexicon.nouns.items() if noun.plural}
    sizes = {word: size for size, words in SIZE_WORDS.items() for word in words}
    found = [
        Object(plurals.get(match["noun"], match["noun"]), match["colour"] or "", sizes.get(match["size"], "medium"))
        for match in re.finditer(_group(lexicon), prompt.lower())
    ]
    return list(dict.fromkeys(found))


def _group(lexicon: Lexicon) -> str:
    """The pattern of an object as people name it: size and colour may be missing."""
    either = lambda words: "|".join(sorted(map(re.escape, words), key=len, reverse=True))  # noqa: E731
    nouns = either({*lexicon.nouns, *(noun.plural for noun in lexicon.nouns.values())} - {""})  # some have no plural
    sizes = either({word for words in SIZE_WORDS.values() for word in words})
    colour = rf"(?:(?P<colour>{either(lexicon.colours)}) )?" if lexicon.colours else "(?P<colour>)"
    return rf"(?P<thing>(?:\b(?P<size>{sizes}) )?\b{colour}\b(?P<noun>{nouns}))\b"


def _is_stated(check: Check, prompt: str) -> bool:
    """Whether a prompt says what a check checks: a medium size and a white ground may be its defaults."""
    words = prompt.lower()
    if check.fact == "size":
        sizes = {word for kinds in (SIZE_WORDS, CHINESE_SIZES) for group in kinds.values() for word in group}
        return any(word in words for word in sizes)
    return check.fact != "ground" or any(word in words for word in ("ground", "背景"))


# Colours


def _named(sight: Sight, picture: np.ndarray) -> tuple[Sight, set[str]]:
    """The objects with the names that a person would give their colours, and the names that are doubtful."""
    objects, doubtful = [], set()
    for seen, mask in zip(sight.objects, sight.masks, strict=True):
        name, doubt = nearest_colour(np.median(picture[mask >= min(0.9, mask.max())], axis=0), COLOURS)
        objects.append(replace(seen, colour=name))
        doubtful |= doubt
    ground, _ = nearest_colour(ground_of(picture, SHAPE_GROUNDS), SHAPE_GROUNDS)
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
        return "verdict.shape", {"thing": _both(check.text, lexicon)}
    if check.fact == "relation":
        relation = next((r for r in CHINESE_RELATIONS if f" {r} " in check.text), None)
        if relation is None:
            return "verdict.stated", {"statement": check.text}
        first, _, second = check.text.partition(f" {relation} ")
        sides = {"first": _both(first, lexicon), "second": _both(second, lexicon)}
        return "verdict.relation", sides | {"where": {"en": relation, "zh": CHINESE_RELATIONS[relation][0]}}
    thing, _, value = check.text.partition(": ")
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
