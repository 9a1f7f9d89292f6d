"""Pipelines from text to pictures and translations, and what they are made of.

The public names are imported when they are first used, so that a command that needs none of them starts fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.edits import excite, paint, pin, refine, replace, reweight, withhold, within
    from pipelines.text_to_image import TextToImagePipeline
    from pipelines.text_to_text import TranslationPipeline
    from pipelines.tracing.attribute import attribute
    from pipelines.tracing.capture import trace
    from pipelines.tracing.edit import edit
    from pipelines.tracing.verify import verify

_EDITS = ("excite", "paint", "pin", "refine", "replace", "reweight", "withhold", "within")

__all__ = [
    "TextToImagePipeline",
    "TranslationPipeline",
    "attribute",
    "edit",
    "excite",
    "paint",
    "pin",
    "refine",
    "replace",
    "reweight",
    "trace",
    "verify",
    "withhold",
    "within",
]

_MODULES = {
    "TextToImagePipeline": "pipelines.text_to_image",
    "TranslationPipeline": "pipelines.text_to_text",
    "attribute": "pipelines.tracing.attribute",
    "edit": "pipelines.tracing.edit",
    "trace": "pipelines.tracing.capture",
    "verify": "pipelines.tracing.verify",
} | dict.fromkeys(_EDITS, "pipelines.edits")


def __getattr__(name: str) -> Any:  # PEP 562
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
