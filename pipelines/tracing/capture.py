"""Record what each picture position reads of each word while a pipeline draws: ours, or any of diffusers'."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from diffusers import DiffusionPipeline

from pipelines.text_to_image import TextToImagePipeline, active_traces
from pipelines.tracing.watch import watched
from unet_xattn import AttentionTrace
from unet_xattn.trace_plan import TRACE_BYTES


@contextmanager
def trace(
    pipe: DiffusionPipeline,
    keep: str | Collection[str] = "mean",
    budget: int = TRACE_BYTES,
    words: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    output: bool = False,
    concepts: Sequence[str] = (),
) -> Iterator[AttentionTrace]:
    """Record the next call of `pipe`; a later call inside the block replaces the recording.

        with trace(pipe) as attention:
            image = pipe("a red circle left of a blue square").images[0]
        attention.heatmap("circle")

    Other threads that use the same pipeline are not recorded. `keep` names the axes that are not averaged, `budget`
    limits the bytes of the recording, `words` and `layers` limit what is recorded, and `output` adds output-space maps
    (`heatmap(..., reduce="output")`); see `TraceRecorder`. `concepts` are names of what may be in the picture: they are
    read beside the prompt and never written, so the picture stays the same. `heatmap("sky")` and `mask("sky")` have
    their maps; of all others that take a branch, it is "concepts".

    Raises:
        TypeError: not a pipeline that can be recorded.
        ValueError: from the call, where something is found that cannot be recorded rightly.
    """
    attention = AttentionTrace(keep, budget, words, layers, output, concepts)
    if not isinstance(pipe, TextToImagePipeline):
        if not isinstance(pipe, DiffusionPipeline):
            raise TypeError(f"only a pipeline of diffusers can be recorded, got a {type(pipe).__name__}")
        with watched(pipe, attention):
            yield attention
        return
    token = active_traces.set((*active_traces.get(), (pipe, attention)))
    try:
        yield attention
    finally:
        active_traces.reset(token)
