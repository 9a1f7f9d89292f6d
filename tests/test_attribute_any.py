"""`attribute` and the commands with pipelines of diffusers."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families_of_pipelines import denoiser_of, expected, state_of
from PIL import Image
from safetensors.torch import load_file
from tiny_pipelines import pipeline
from torch import Tensor, nn

from pipelines import attribute
from pipelines.components import to_tensor
from ui.cli import main
from unet_xattn import AttentionTrace

CAPTION = "a red circle left of a blue square"
LEVELS = (0.3, 0.6)

# Side of what the model draws by default in latent pixels, times the pixels of one.
SIDES = {"sd": 16 * 4, "sdxl": 16 * 4, "sd3": 32 * 4, "flux": 128 * 4, "pixart_sigma": 16 * 4, "sana": 32 * 2}


@pytest.fixture
def picture() -> Image.Image:
    return Image.radial_gradient("L").resize((180, 90)).convert("RGB")


def read(name: str, picture: Image.Image, **changes: Any) -> AttentionTrace:
    return attribute(pipeline(name), picture, CAPTION, **{"levels": LEVELS, "draws": 2, "keep": "step"} | changes)


@pytest.mark.parametrize("name", [name for name in SIDES if name != "flux"])
def test_a_picture_is_read_at_each_level_in_its_own_ratio(name: str, picture: Image.Image) -> None:
    read(name, picture)
    pipe = pipeline(name)
    scheduler, settings, before = pipe.scheduler, dict(pipe.scheduler.config), state_of(pipe)
    attention = read(name, picture)
    assert pipe.scheduler is scheduler and dict(scheduler.config) == settings and state_of(pipe) == before
    side = SIDES[name]
    assert attention.size == (side, 2 * side) == attention.pictures.shape[1:3] and len(attention.pictures) == 1
    assert attention.steps == list(range(len(LEVELS))) and attention.recording.steps == len(LEVELS)
    assert attention.layers == list(expected(name).layers) and set(attention.recording.texts) == {"prompt"}
    for layer in attention.layers:
        height, width = attention.recording.grids[layer]
        assert width == 2 * height
        torch.testing.assert_close(attention.maps(layer).sum(dim=0), torch.ones(height, width), rtol=0, atol=1e-5)
    assert [str(word) for word in attention.words] == CAPTION.split() and attention.prompts == [CAPTION]
    assert attention.recording.settings["levels"] == list(LEVELS) and attention.recording.settings["cut_off"] == 0
    again, other = read(name, picture), read(name, picture, seed=1)
    assert torch.equal(attention.heatmap("circle"), again.heatmap("circle"))
    assert not torch.equal(attention.heatmap("circle"), other.heatmap("circle"))


def inputs_of(name: str, picture: Image.Image) -> list[tuple[Tensor, float]]:
    """The latents and the timestep of each pass of the denoiser."""
    found = []

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        sample = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        time = kwargs["timestep"] if "timestep" in kwargs else args[1]
        found.append((sample.clone(), float(time.flatten()[0])))

    hook = denoiser_of(name).register_forward_pre_hook(note, with_kwargs=True)
    read(name, picture, seed=3)
    hook.remove()
    return found


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "pixart_sigma", "sana"])
def test_the_denoiser_gets_the_picture_with_noise_of_each_level(name: str, picture: Image.Image) -> None:
    vae, side = pipeline(name).vae, SIDES[name]
    fitted = to_tensor(np.array(picture.resize((2 * side, side), Image.Resampling.LANCZOS))[None])
    with torch.no_grad():
        encoded = vae.encode(fitted)
    clean = encoded.latent if name == "sana" else encoded.latent_dist.mode()
    clean = (clean - (vae.config.get("shift_factor") or 0)) * vae.config.scaling_factor
    noise = torch.randn(2, *clean.shape[1:], generator=torch.Generator().manual_seed(3))
    passes = inputs_of(name, picture)
    for (sample, time), level in zip(passes, LEVELS, strict=True):
        if name in ("sd3", "sana"):  # a rectified flow
            assert time == pytest.approx(1000 * level)
            wanted = (1 - level) * clean + level * noise
        else:  # the timestep with this ratio of noise to picture
            kept = float(pipeline(name).scheduler.alphas_cumprod[int(time)])
            assert ((1 - kept) / kept) ** 0.5 == pytest.approx(level / (1 - level), rel=0.02)
            wanted = kept**0.5 * clean + (1 - kept) ** 0.5 * noise
        assert (sample - wanted).abs().max() < 0.1 * wanted.std()  # pictures are resized a little differently
        assert (sample[0] - sample[1]).std() > level * 0.5


def test_flux_reads_packed_latents(picture: Image.Image) -> None:
    """Smaller than it draws by default: attention over 512 pixels a side would take the test a minute."""
    pipe = pipeline("flux")
    small = type(pipe)(**pipe.components)
    small.set_progress_bar_config(disable=True)
    small.default_sample_size = 16
    attention = attribute(small, picture, CAPTION, levels=LEVELS, draws=2, keep="step")
    assert attention.size == (64, 128) and set(attention.recording.grids.values()) == {(8, 16)}
    assert attention.steps == [0, 1] and attention.layers == list(expected("flux").layers)


@pytest.mark.parametrize("name", ["deepfloyd", "kandinsky21", "kandinsky22", "qwenimage", "flux2_klein"])
def test_other_pipelines_cannot_attribute(name: str, picture: Image.Image) -> None:
    before = state_of(pipeline(name))
    message = f"^{type(pipeline(name)).__name__} cannot attribute: it takes no latents made by its VAE$"
    with pytest.raises(TypeError, match=message):
        read(name, picture)
    assert state_of(pipeline(name)) == before


# The commands


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A function of arguments -> (exit code, standard output, standard error) of the command."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["unet-xattn", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion that somebody saved."""
    path = tmp_path_factory.mktemp("model") / "sd"
    pipeline("sd").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pickled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, saved with pickles only."""
    path = tmp_path_factory.mktemp("model") / "pickled"
    pipeline("sd").save_pretrained(path, safe_serialization=False)
    for file in path.rglob("*.safetensors"):  # transformers writes nothing else any more
        torch.save(load_file(file), file.with_name("pytorch_model.bin"))
        file.unlink()
    assert len(list(path.rglob("*.bin"))) == 3
    return path


def test_a_folder_draws_a_picture_a_sheet_and_a_trace_that_exports(run, folder: Path, tmp_path: Path) -> None:
    name = ("generate", "A red circle", "--model", folder, "--steps", "2", "--out", tmp_path / "new")
    code, out, err = run(*name, "--keep", "full")
    assert code == 0, err
    picture, sheet, kept = (Path(line) for line in out.split())
    assert re.sub(r".*/", "", str(kept)) == "a-red-circle-seed0.safetensors"
    with Image.open(picture) as drawn, Image.open(sheet) as words:
        assert drawn.size == (64, 64) and words.size[0] > 64
    attention = AttentionTrace.load(kept)
    assert attention.prompts == ["A red circle"] and attention.layers == list(expected("sd").layers)
    assert attention.steps == [0, 1] and attention.heatmap("red", step=1, head=1).shape == (64, 64)
    code, out, err = run("export", kept, "--out", tmp_path / "all")
    assert code == 0, err
    assert sorted(Path(line).name for line in out.split()) == sorted(p.name for p in (tmp_path / "all").iterdir())
    assert any(p.suffix == ".html" for p in (tmp_path / "all").iterdir())


def test_words_that_were_cut_off_are_told(run, folder: Path, tmp_path: Path) -> None:
    prompt = "red " * 80 + "dog"
    code, _, err = run("generate", prompt, "--model", folder, "--steps", "1", "--out", tmp_path)
    assert code == 0 and "cut off" in err and "dog" in err


def test_a_folder_finds_words_in_an_existing_picture(run, folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (90, 45), "red").save(tmp_path / "mine.png")
    code, out, err = run("attribute", tmp_path / "mine.png", "a red dog", "--model", folder, "--out", tmp_path / "read")
    assert code == 0, err
    assert [Path(line).name for line in out.split()] == ["mine-words.png", "mine.safetensors"]
    assert AttentionTrace.load(tmp_path / "read" / "mine.safetensors").size == (64, 128)


def test_a_folder_with_pickled_weights_is_refused(run, pickled: Path, tmp_path: Path) -> None:
    code, out, err = run("generate", "a dog", "--model", pickled, "--steps", "1", "--out", tmp_path / "new")
    assert code == 1 and out == "" and len(err.strip().splitlines()) == 1
    assert err.startswith(f"error: {pickled} cannot be loaded: ") and "safetensors" in err
    assert not (tmp_path / "new").exists()
