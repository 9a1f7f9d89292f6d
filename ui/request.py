"""The settings of one generation, as the controls, a link and a client give them."""

from dataclasses import asdict, dataclass
from typing import Any

from pipelines.checks import check_prompt, check_text, parse_seed
from pipelines.samplers import OWN
from ui.edit_text import read_regions
from ui.texts import Message

MOST_STEPS = 100
MOST_PICTURES = 8

RENAMED = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "negative": "negative_prompt",
    "count": "num_images_per_prompt",
    "low": "guidance_low",
    "high": "guidance_high",
}
"""The former names of settings in links and in the API -> their names, which are those of diffusers."""


@dataclass(frozen=True)
class Request:
    """The settings of one generation. Guidance acts at noise levels in (guidance_low, guidance_high].

    `edits` and `regions` are texts as `edit_text` reads them.
    """

    prompt: str
    seed: str = "0"
    num_inference_steps: int = 20
    guidance_scale: float = 1.0
    guidance_low: float = 0.0
    guidance_high: float = 1.0
    negative_prompt: str = ""
    sampler: str = OWN
    num_images_per_prompt: int = 1
    model: str = ""
    edits: str = ""
    regions: str = ""

    def check(self) -> None:
        """Raise ValueError for settings that the pipeline accepts, or refuses only after costly work."""
        check_prompt(self.prompt)
        check_text(self.negative_prompt, "negative prompt")
        parse_seed(self.seed)
        read_regions(self.regions)
        most = {"num_inference_steps": MOST_STEPS, "num_images_per_prompt": MOST_PICTURES}
        for name, limit in most.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= limit:
                raise ValueError(f"{name} must be a whole number from 1 to {limit}, got {str(value)[:40]}")
        for name in ("guidance_scale", "guidance_low", "guidance_high"):
            value = getattr(self, name)
            if not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, got {str(value)[:40]}")

    @property
    def seeds(self) -> list[int]:
        """The seed of each picture: the one that was typed, then the numbers after it."""
        first = parse_seed(self.seed)
        return [(first + i) % 2**64 for i in range(self.num_images_per_prompt)]

    def settings(self, image: int) -> dict[str, Any]:
        """The settings that generate one of the pictures again, as a link can carry them."""
        return asdict(self) | {"seed": str(self.seeds[image]), "num_images_per_prompt": 1}


# What is wrong with a field, beside it on the page; nothing if it can be used.


def seed_problems(seed: str) -> list[Message]:
    try:
        parse_seed(seed)
    except ValueError:
        return [("problem.seed", {})]
    return []


def negative_problems(negative_prompt: str) -> list[Message]:
    try:
        check_text(negative_prompt, "negative prompt")
    except ValueError as error:
        return [("problem.line", {"line": str(error)})]
    return []


def interval_problems(low: float, high: float) -> list[Message]:
    return [] if low < high else [("problem.interval", {})]
