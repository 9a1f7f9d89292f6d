"""Everything that computes runs on a device other than the CPU, and mixes no tensors of both."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_path_runs_on_another_device() -> None:
    """In a process of its own, because a registered device cannot be taken back."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS / "on_another_device.py"]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
