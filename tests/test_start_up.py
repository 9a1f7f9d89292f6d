"""Commands start fast, because each imports only what it uses: `sys.modules` after it says what that was."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from pipelines.scenes import WORLD_NAMES
from pipelines.scenes.worlds import WORLDS
from ui.cli import app

COMMANDS = """
import json, sys
from ui.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["unet-xattn", *arguments]
    try:
        main()
    except SystemExit as stopped:
        assert not stopped.code, (arguments, stopped.code)
"""
PAGE = {"gradio", "pandas", "fastapi"}
MODELS = {"torch", "diffusers", "transformers", "accelerate", "datasets", "numpy", "scipy", "PIL"}


def imported_by(code: str, *arguments: object) -> set[str]:
    """The modules that a new process has imported when it has run this code."""
    code += "\nimport sys; print('\\n' + ' '.join(sys.modules))"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def imported_by_commands(*commands: list[str]) -> set[str]:
    return imported_by(COMMANDS, json.dumps(commands))


def command_names(group: typer.core.TyperGroup, *path: str) -> list[list[str]]:
    names = []
    for name, command in group.commands.items():
        names.append([*path, name])
        if isinstance(command, typer.core.TyperGroup):
            names += command_names(command, *path, name)
    return names


def test_help_imports_no_numerical_library_and_no_page() -> None:
    names = command_names(typer.main.get_command(app))
    assert ["data", "check"] in names
    imported = imported_by_commands(["--help"], ["--version"], *([*name, "--help"] for name in names))
    assert not imported & (PAGE | MODELS)


def test_listing_the_runs_imports_no_numerical_library_and_no_page(tmp_path: Path) -> None:
    checkpoint = tmp_path / "half" / "checkpoints" / "step-00000005"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text('{"step": 5, "config": {"data": "shapes", "steps": 10}}')
    assert not imported_by_commands(["runs", str(tmp_path)]) & (PAGE | MODELS)


def test_generate_and_export_import_no_page(tmp_path: Path) -> None:
    drawing = ["generate", "a red circle", "--steps", "1", "--keep", "step", "--out", str(tmp_path)]
    assert not imported_by_commands(drawing) & (PAGE | {"datasets"})
    trace = tmp_path / "a-red-circle-seed0.safetensors"
    exporting = ["export", str(trace), "--out", str(tmp_path / "new")]
    assert not imported_by_commands(exporting) & (PAGE | {"diffusers", "transformers", "accelerate", "datasets"})


@pytest.mark.parametrize("package", ["pipelines", "unet_xattn"])
def test_a_package_imports_its_public_names_when_they_are_used(package: str) -> None:
    assert not imported_by(f"import {package}") & MODELS
    module = importlib.import_module(package)
    assert all(getattr(module, name).__name__ == name for name in module.__all__)
    assert dir(module) == sorted(module.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        module.nonsense  # noqa: B018


def test_the_names_of_the_worlds_that_settings_know_are_the_worlds() -> None:
    assert tuple(WORLDS) == WORLD_NAMES
