"""The samplers of diffusers that integrate a rectified flow."""

from collections.abc import Callable

from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from pipelines.text_to_image import TextToImagePipeline

SAMPLERS: dict[str, Callable[[], SchedulerMixin]] = {
    "Euler": FlowMatchEulerDiscreteScheduler,
    "Heun": FlowMatchHeunDiscreteScheduler,
    "DPM-Solver++": lambda: DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    "UniPC": lambda: UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
}
"""Name -> a scheduler. Heun asks the network twice for each step."""


def with_sampler(pipe: TextToImagePipeline, name: str) -> TextToImagePipeline:
    """The same networks (not copies) under another sampler.

    Raises:
        ValueError: there is no such sampler.
    """
    if name not in SAMPLERS:
        raise ValueError(f"the sampler is one of {', '.join(SAMPLERS)}, not {name[:40]!r}")
    parts = pipe.components | {"scheduler": SAMPLERS[name]()}
    other = TextToImagePipeline(**parts, calibration=pipe.config.calibration)
    other.set_progress_bar_config(disable=True)
    return other
