"""The circumstances of a run: its machine, the version of the code, and its speed and memory along the way.

torch is imported where it is needed: listing the runs needs none.
"""

import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

PACKAGE = "unet-xattn"


def machine(device: "str | torch.device" = "cpu") -> str:
    """A description of the machine that a figure was measured on."""
    import torch

    device = torch.device(device)
    name_of = getattr(torch.get_device_module(device), "get_device_name", None)  # CUDA's and XPU's
    if name_of is not None:
        return f"{name_of(device)}, torch {torch.__version__}"
    kind = device.type.upper()
    return f"{platform.machine()} {kind}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def code_version() -> str:
    """The commit this code is checked out at, "commit 1a2b3c4d5e6f", with "-dirty" if it was changed since.

    Outside a checkout, or without git, it is `package_version`.
    """
    here = Path(__file__)
    # A package that is installed inside another checkout is not tracked there, and that commit says nothing about it.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name):
        return f"commit {_git(here.parent, 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*')}"
    return package_version()


def package_version() -> str:
    """The installed version of the package, "unet-xattn 0.1.0"."""
    try:
        return f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError:  # imported from a folder that nobody has installed
        return f"{PACKAGE}, version unknown"


def _git(folder: Path, *arguments: str) -> str:
    """The output of git in a folder; "" if it fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


class Pace:
    """The speed of a run, the time it has left, and its memory.

    Args:
        first: the number of steps taken so far.
        last: the number of steps at the end.
        batch_size: pictures per step.
    """

    def __init__(self, first: int, last: int, batch_size: int):
        self.first, self.last, self.batch_size = first, last, batch_size
        self.began = time.monotonic()
        self.restart(first)

    def restart(self, step: int) -> None:
        """Begin a new interval, so that the rate does not count the time since the last one (validating, saving)."""
        self.step, self.since = step, time.monotonic()

    def read(self, step: int) -> dict[str, float]:
        """The figures after a step. A new interval begins.

        Returns:
            "pictures/s" over the interval that ends here; "seconds left" at the mean speed since this process began,
            including validations; "memory GiB", the resident memory of this process without its loader's workers; on an
            accelerator also "GPU memory GiB", the peak of its tensors so far.
        """
        now = time.monotonic()
        figures = {
            "pictures/s": (step - self.step) * self.batch_size / max(now - self.since, 1e-9),
            "seconds left": (self.last - step) * (now - self.began) / max(step - self.first, 1),
            "memory GiB": psutil.Process().memory_info().rss / 2**30,
        }
        if peak := peak_gpu_memory():
            figures["GPU memory GiB"] = peak / 2**30
        self.restart(step)
        return figures


def peak_gpu_memory() -> int:
    """The peak of the tensors on this process's accelerator so far, in bytes; 0 where none counts them."""
    import torch

    if not torch.accelerator.is_available():
        return 0
    try:
        return torch.accelerator.max_memory_allocated()
    except RuntimeError:  # not every backend's allocator counts
        return 0


def brief(figures: dict[str, float]) -> str:
    """The figures of `Pace.read` for a progress bar: "118 pictures/s, 1.9 GiB"."""
    gpu = f", GPU {figures['GPU memory GiB']:.1f} GiB" if "GPU memory GiB" in figures else ""
    return f"{figures['pictures/s']:.0f} pictures/s, {figures['memory GiB']:.1f} GiB{gpu}"


def in_words(seconds: float) -> str:
    """A duration as "1 h 5 min", "3 min 20 s" or "8 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
