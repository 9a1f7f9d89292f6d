"""From text and files to pictures and numbers."""

from pipelines.text_to_image import TextToImagePipeline
from pipelines.text_to_text import TranslationPipeline
from pipelines.tracing.capture import attribute, trace, verify

__all__ = ["TextToImagePipeline", "TranslationPipeline", "attribute", "trace", "verify"]
