"""The package as people install it: built, installed without the checkout, and used."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import TextToImagePipeline
from pipelines.text_to_image import BUNDLED

CHECKOUT = Path(__file__).parent.parent
PACKAGES = ("unet_xattn", "pipelines", "ui")

DRAW = """
import sys
import pipelines, ui, unet_xattn
from ui.cli import main
for package in (pipelines, ui, unet_xattn):
    print(package.__file__, file=sys.stderr)
main()
"""


def run(*command: object, **settings: object) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300, **settings)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, because setuptools leaves its files beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(CHECKOUT / package, folder / "copy" / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, folder / "copy")
    run("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "copy")
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_module_every_part_of_the_page_and_every_bundled_model(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.split("/")[0] in PACKAGES}
    files = [path for package in PACKAGES for path in (CHECKOUT / package).rglob("*") if path.is_file()]
    expected = {path.relative_to(CHECKOUT).as_posix() for path in files if "__pycache__" not in path.parts}
    documents = {name for name in expected if name.endswith("README.md") and "bundled" not in name}
    assert packed == expected - documents
    assert {"pipelines/runs/folder.py", "ui/viewer/viewer.js"} <= packed
    assert "pipelines/bundled/shapes/unet/diffusion_pytorch_model.safetensors" in packed


def test_the_installed_wheel_draws_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run("-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel)
    environment = os.environ | {"PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1"}
    arguments = ("generate", "a red circle", "--steps", "2", "--out", "drawn")
    done = run("-c", DRAW, *arguments, cwd=elsewhere, env=environment)
    imported = [Path(line) for line in done.stderr.splitlines()[:3]]
    assert [path.relative_to(target).parts[0] for path in imported] == ["pipelines", "ui", "unet_xattn"]
    with Image.open(elsewhere / "drawn" / "a-red-circle-seed0.png") as picture:
        assert picture.size == (64, 64)


@pytest.mark.parametrize("name", ["shapes", "emoji", "everyday"])
def test_a_copy_of_a_bundled_model_opens_from_its_folder_and_draws_the_same(name: str, tmp_path: Path) -> None:
    copy = shutil.copytree(BUNDLED / name, tmp_path / "copy")
    index = (copy / "model_index.json").read_text()
    assert '"unet_xattn.unet"' in index and '"unet_xattn.transformer"' in index
    pictures = []
    for model in (name, copy):
        pipe = TextToImagePipeline.from_pretrained(model)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        pictures.append(np.asarray(pipe("a red circle", num_inference_steps=2, generator=generator).images[0]))
    assert (pictures[0] == pictures[1]).all()
