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
    "Euler, stochastic": lambda: FlowMatchEulerDiscreteScheduler(shift=2.0, stochastic_sampling=True),
    "Heun": FlowMatchHeunDiscreteScheduler,
    "DPM-Solver++": lambda: DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    "UniPC": lambda: UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
}
"""Name -> a scheduler. Heun asks the network twice for each step.

A stochastic step goes to the picture it was heading for and back to less noise, all of it new, so that later steps can
mend what earlier ones got wrong (arXiv 2303.01469, algorithm 1); and its steps lie nearer to noise, where it is decided
what will be where.
"""

OWN = "the model's own"

TRAINED_FOR = "Euler, stochastic"
"""Which of them `train` has its models draw by: README, "How far the bundled model obeys"."""


def with_sampler(pipe: TextToImagePipeline, name: str) -> TextToImagePipeline:
    """The same networks (not copies) under another sampler.

    Raises:
        ValueError: there is no such sampler.
    """
    if name not in (OWN, *SAMPLERS):
        raise ValueError(f"the sampler is one of {OWN}, {'; '.join(SAMPLERS)}, not {name[:40]!r}")
    parts = pipe.components | ({} if name == OWN else {"scheduler": SAMPLERS[name]()})
    other = TextToImagePipeline(**parts, **pipe.settings)
    other.set_progress_bar_config(disable=True)
    return other
