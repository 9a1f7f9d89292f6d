"""One way to record what a pipeline's cross-attention does."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from diffusers import DiffusionPipeline

from pipelines.text_to_image import TextToImagePipeline, active_traces
from unet_xattn import AttentionTrace


@contextmanager
def trace(pipe: DiffusionPipeline, keep: str | Collection[str] = "mean") -> Iterator[AttentionTrace]:
    """Record the next call of `pipe` (a later call inside the block starts anew).

        with trace(pipe) as attention:
            image = pipe("a red circle left of a blue square").images[0]
        attention.heatmap("circle")

    Other threads that use the same pipeline are not recorded. `keep` is what to keep apart, see `AttentionTrace`.

    Raises:
        TypeError: a pipeline of a kind that cannot be recorded.
    """
    if not isinstance(pipe, TextToImagePipeline):
        raise TypeError(f"trace() records a TextToImagePipeline, not a {type(pipe).__name__}")
    attention = AttentionTrace(keep)
    token = active_traces.set((*active_traces.get(), (pipe, attention)))
    try:
        yield attention
    finally:
        active_traces.reset(token)
