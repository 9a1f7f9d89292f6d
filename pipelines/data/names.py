"""Real pairs of sentences to train on: what countries, languages, scripts, currencies and emoji are called.

English and Chinese, from the packages pycountry (ISO's lists and Debian's translations of them, LGPL 2.1) and emoji
(Unicode's names, BSD). Neither comes with this package but as its extra "names".
"""

import gettext
import os
from pathlib import Path

import numpy as np

LISTS = {"countries": "iso3166-1", "languages": "iso639-3", "scripts": "iso15924", "currencies": "iso4217"}
"""pycountry's name of a list -> that of its translations."""


def names() -> list[tuple[str, str]]:
    """(English, Chinese) for every name that has a translation, each once, in an order that mixes the lists.

    Raises:
        ValueError: a package is missing.
    """
    try:
        import emoji
        import pycountry
    except ImportError as error:
        raise ValueError(f"the package {error.name} is missing: pip install pycountry emoji") from error
    pairs = []
    for name, domain in LISTS.items():
        chinese = gettext.translation(domain, pycountry.LOCALES_DIR, languages=["zh_CN"])
        pairs += [(entry.name, chinese.gettext(entry.name)) for entry in getattr(pycountry, name)]
    emoji.config.load_language("zh")
    for entry in emoji.EMOJI_DATA.values():
        if entry["status"] == emoji.STATUS["fully_qualified"] and "skin_tone" not in entry["en"] and "zh" in entry:
            pairs.append((entry["en"].strip(":").replace("_", " "), entry["zh"].strip(":").replace("_", " ")))
    # Several translations of one name stand behind one another; what is the same in both was never translated.
    first = {english: chinese.split(";")[0].strip() for english, chinese in reversed(pairs) if english != chinese}
    found = sorted(first.items())
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def write_names(path: str | Path) -> int:
    """Write `names` as a new .tsv for `train_text`; returns how many there are.

    Raises:
        ValueError: the file is there already or is no .tsv, or a package is missing.
    """
    path = Path(path)
    if path.suffix != ".tsv":
        raise ValueError(f"{path} is no .tsv: the pairs are written as two columns with a tab between them")
    if path.exists():
        raise ValueError(f"{path} already exists: it was left untouched, give a new name")
    lines = [f"{english}\t{chinese}\n" for english, chinese in names()]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tsv.new")
    unfinished.write_text("".join(lines), encoding="utf-8")
    os.replace(unfinished, path)
    return len(lines)
