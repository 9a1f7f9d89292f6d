"""The texts of the page in all its languages: each .json beside this file maps a key to its text in each language.

A text may have places for values, such as "{steps}". Python writes English, for the API and the command line. The page
itself writes in the language of its browser: Gradio's parts by `labels.I18N`, our components by the keys that Python
sends.
"""

import json
from importlib.resources import files
from typing import Any

LANGUAGES = ("en", "zh")

TEXTS: dict[str, dict[str, str]] = {
    key: texts
    for file in sorted(files(__name__).iterdir(), key=lambda file: file.name)
    if file.name.endswith(".json")
    for key, texts in json.loads(file.read_text("utf-8")).items()
}
"""Key -> language -> text."""

Message = tuple[str, dict[str, Any]]
"""A key with the values of its places: what Python sends to a component."""


def text(key: str, language: str = "en", **values: Any) -> str:
    """A text with its values; a value may differ by language: {"en": ..., "zh": ...}."""
    values = {name: value[language] if isinstance(value, dict) else value for name, value in values.items()}
    return TEXTS[key][language].format(**values)


def lines(messages: list[Message]) -> str:
    """Messages in English, one sentence after another."""
    return " ".join(text(key, **values) for key, values in messages)


def texts_of(*prefixes: str) -> dict[str, dict[str, str]]:
    """The texts whose keys begin with one of these prefixes: language -> key -> text, for a component's script."""
    return {
        language: {key: texts[language] for key, texts in TEXTS.items() if key.startswith(prefixes)}
        for language in LANGUAGES
    }
