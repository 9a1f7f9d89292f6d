"""From text and files to pictures and numbers."""

from pipelines.capture import trace
from pipelines.text_to_image import TextToImagePipeline
from pipelines.text_to_text import TranslationPipeline

__all__ = ["TextToImagePipeline", "TranslationPipeline", "trace"]
