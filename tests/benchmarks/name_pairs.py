"""Real pairs of sentences to train on: the English and Chinese names of countries, languages, currencies, emoji, …

    python tests/benchmarks/name_pairs.py names.tsv

They come from the packages pycountry (ISO's lists and Debian's translations of them, LGPL 2.1) and emoji (Unicode's
names, BSD), which are in the extra "test".
"""

import argparse
import gettext
import os
from pathlib import Path

import emoji
import numpy as np
import pycountry

LISTS = {"countries": "iso3166-1", "languages": "iso639-3", "scripts": "iso15924", "currencies": "iso4217"}
"""pycountry's name of a list -> the name of its translations."""


def names() -> list[tuple[str, str]]:
    """(English, Chinese) for every name that has a translation, each once, in an order that mixes the lists."""
    pairs = []
    for name, domain in LISTS.items():
        chinese = gettext.translation(domain, pycountry.LOCALES_DIR, languages=["zh_CN"])
        pairs += [(entry.name, chinese.gettext(entry.name)) for entry in getattr(pycountry, name)]
    emoji.config.load_language("zh")
    for entry in emoji.EMOJI_DATA.values():
        if entry["status"] == emoji.STATUS["fully_qualified"] and "skin_tone" not in entry["en"] and "zh" in entry:
            pairs.append((entry["en"].strip(":").replace("_", " "), entry["zh"].strip(":").replace("_", " ")))
    # An entry may list several translations of a name. A name that is equal in both languages was never translated.
    first = {english: chinese.split(";")[0].strip() for english, chinese in reversed(pairs) if english != chinese}
    found = sorted(first.items())
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def write_names(path: str | Path) -> int:
    """Write `names` as a new .tsv for `train_text`; returns their number.

    Raises:
        ValueError: the file exists, or its name does not end in .tsv.
    """
    path = Path(path)
    if path.suffix != ".tsv":
        raise ValueError(f"the file must end in .tsv, got {path}: pairs are two columns with a tab between them")
    if path.exists():
        raise ValueError(f"{path} already exists: choose another name")
    lines = [f"{english}\t{chinese}\n" for english, chinese in names()]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tsv.new")
    unfinished.write_text("".join(lines), encoding="utf-8")
    os.replace(unfinished, path)
    return len(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a new .tsv")
    arguments = parser.parse_args()
    print(f"{write_names(arguments.file)} pairs in {arguments.file}")
