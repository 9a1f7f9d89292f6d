"""What a run runs on and by: the machine in words, the code's commit, and how fast and how large it is on the way."""

import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

PACKAGE = "unet-xattn"


def machine(device: str = "cpu") -> str:
    """The machine a figure was measured on, in words."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    kind = "CPU" if device == "cpu" else device.upper()
    return f"{platform.machine()} {kind}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def code_version() -> str:
    """The commit this code is checked out at, "commit 1a2b3c4d5e6f" (with "-dirty" if it was changed since).

    Outside a checkout, where the code is not git's or there is no git, the package's version, "unet-xattn 0.1.0".
    """
    here = Path(__file__)
    # A package installed inside somebody's own checkout is not of that checkout's commit: it must be tracked there.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name):
        return f"commit {_git(here.parent, 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*')}"
    try:
        return f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError:
        return f"{PACKAGE}, of no known version"


def _git(folder: Path, *arguments: str) -> str:
    """What git answers in a folder; "" where it fails or there is none."""
    try:
        asked = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""


class Pace:
    """How fast a run goes, how long it will take, and how much memory it takes.

    Args:
        first, last: the steps done so far, and those there are to do.
        batch_size: pictures a step.
    """

    def __init__(self, first: int, last: int, batch_size: int):
        self.first, self.last, self.batch_size = first, last, batch_size
        self.began = time.monotonic()
        self.restart(first)

    def restart(self, step: int) -> None:
        """Begin an interval here: what lies between, a validation or a save, is no training and no part of a rate."""
        self.step, self.since = step, time.monotonic()

    def read(self, step: int) -> dict[str, float]:
        """Figures after a step: begins an interval too.

        Returns:
            "pictures/s" over the interval that ends here; "seconds left", at the mean pace since this process began,
            validations with it; "memory GiB", resident, of this process without its loader's workers; on a GPU "GPU
            memory GiB", the most that tensors took at a time so far.
        """
        now = time.monotonic()
        figures = {
            "pictures/s": (step - self.step) * self.batch_size / max(now - self.since, 1e-9),
            "seconds left": (self.last - step) * (now - self.began) / max(step - self.first, 1),
            "memory GiB": psutil.Process().memory_info().rss / 2**30,
        }
        if torch.cuda.is_available():
            figures["GPU memory GiB"] = torch.cuda.max_memory_allocated() / 2**30
        self.restart(step)
        return figures


def brief(figures: dict[str, float]) -> str:
    """What `Pace.read` gave, for the end of a progress bar: "118 pictures/s, 1.9 GiB"."""
    gpu = f", GPU {figures['GPU memory GiB']:.1f} GiB" if "GPU memory GiB" in figures else ""
    return f"{figures['pictures/s']:.0f} pictures/s, {figures['memory GiB']:.1f} GiB{gpu}"


def in_words(seconds: float) -> str:
    """A length of time, "1 h 5 min", "3 min 20 s" or "8 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
