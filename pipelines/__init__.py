"""From text and files to pictures and numbers."""

from pipelines.capture import attribute, trace, verify
from pipelines.text_to_image import TextToImagePipeline
from pipelines.text_to_text import TranslationPipeline

__all__ = ["TextToImagePipeline", "TranslationPipeline", "attribute", "trace", "verify"]
