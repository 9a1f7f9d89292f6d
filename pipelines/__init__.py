"""From text and files to pictures and numbers."""

from pipelines.capture import trace
from pipelines.text_to_image import TextToImagePipeline

__all__ = ["TextToImagePipeline", "trace"]
