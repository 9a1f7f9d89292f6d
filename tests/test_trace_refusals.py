"""What cannot be recorded rightly is refused by one line that names what was found, and nothing stays behind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FirstBlockCacheConfig
from families_of_pipelines import EXPECTED, denoiser_of, state_of
from PIL import Image
from tiny_pipelines import FAMILIES, pipeline
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines import trace
from ui.cli import main

PROMPT = "a red circle left of a blue square"


def draw(name: str, pipe: DiffusionPipeline, prompt: str | None = PROMPT, **changes: Any) -> np.ndarray:
    return FAMILIES[name].draw(pipe, prompt, **changes)  # type: ignore[arg-type]


def assert_refused(
    name: str, pipe: DiffusionPipeline, message: str, settings: dict[str, Any] | None = None, **changes: Any
) -> None:
    """A recorded call raises one line, and everything is as before: class, hooks, pictures."""
    plain, before = draw(name, pipe), state_of(pipe)
    with trace(pipe, **settings or {}) as attention:
        with pytest.raises(ValueError, match=message) as error:
            draw(name, pipe, **changes)
        with pytest.raises(ValueError, match="nothing has been recorded yet"):
            attention.heatmap("circle")
    assert "\n" not in str(error.value)
    assert state_of(pipe) == before
    np.testing.assert_array_equal(draw(name, pipe), plain)


# Kernels that cannot be seen


def attend_by_hand(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention without torch's kernel and without its softmax, for (B, H, L, E)."""
    scores = torch.einsum("bhle,bhse->bhls", q, k) * scale
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return torch.einsum("bhls,bhse->bhle", weights / weights.sum(dim=-1, keepdim=True), v)


class HiddenCross:
    """A processor of cross-attention, as somebody's library may have it."""

    def __call__(self, attn: Any, x: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Tensor:
        text = x if encoder_hidden_states is None else encoder_hidden_states
        projected = attn.to_q(x), attn.to_k(text), attn.to_v(text)
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in projected)
        out = attend_by_hand(q, k, v, attn.scale).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))


def hide_kernel(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a layer's processor use another kernel than torch's."""
    kind = type(layer.processor)

    class Hidden(kind):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with monkeypatch.context() as patch:
                patch.setattr(F, "scaled_dot_product_attention", by_hand)
                patch.setattr(
                    "diffusers.models.attention_dispatch.torch.nn.functional.scaled_dot_product_attention", by_hand
                )
                return kind.__call__(self, *args, **kwargs)

    def by_hand(query: Tensor, key: Tensor, value: Tensor, *_: Any, scale: float | None = None, **__: Any) -> Tensor:
        return attend_by_hand(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale)

    layer.processor.__class__ = Hidden


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("sd3", "transformer_blocks.1.attn"),
        ("flux", "transformer_blocks.1.attn"),
        ("flux", "single_transformer_blocks.1.attn"),
        ("z_image", "layers.1.attention"),
        ("lumina2", "layers.1.attn"),
    ],
)
def test_a_hidden_kernel_beside_visible_ones(name: str, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = FAMILIES[name].build()
    hide_kernel(pipe.transformer.get_submodule(layer), monkeypatch)
    assert_refused(name, pipe, rf"^layer {layer} computes its attention in a way that cannot be seen: use torch's own")


@pytest.mark.parametrize("every", [False, True])
def test_a_hidden_kernel_in_cross_attention(every: bool) -> None:
    pipe = FAMILIES["sd"].build()
    layers = [module for name, module in pipe.unet.named_modules() if name.endswith("attn2")]
    for layer in layers if every else layers[3:4]:
        layer.set_processor(HiddenCross())
    found = "down_blocks.0.attentions.0" if every else "up_blocks.1.attentions.1"
    assert_refused("sd", pipe, rf"^layer {found}.*attn2 computes its attention in a way that cannot be seen")


def test_a_hidden_kernel_where_no_text_is_read_does_not_matter() -> None:
    pipe = FAMILIES["sd"].build()
    for name, module in pipe.unet.named_modules():
        if name.endswith("attn1"):
            module.set_processor(HiddenCross())
    with trace(pipe) as attention:
        draw("sd", pipe)
    assert len(attention.layers) == 7


# Denoisers


@pytest.mark.parametrize("name", ["flux", "qwenimage"])
def test_a_cache_that_leaves_out_layers(name: str) -> None:
    """After an error the cache of diffusers holds what it held, so that the next picture may be another one."""
    pipe = FAMILIES[name].build()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e6))
    draw(name, pipe)
    before, kind = state_of(pipe), type(pipe.transformer).__name__
    message = rf"^{kind} cannot be recorded: a pass left out layers \(.*transformer_blocks.*\): switch off its cache$"
    with pytest.raises(ValueError, match=message), trace(pipe):
        draw(name, pipe)
    assert state_of(pipe) == before


def renamed(name: str) -> DiffusionPipeline:
    """A pipeline with a denoiser of somebody's own class."""
    pipe = FAMILIES[name].build()
    part = pipe.transformer if "transformer" in pipe.components else pipe.unet
    part.__class__ = type("MyNetwork", (type(part),), {})
    return pipe


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "flux",
            r"^MyNetwork cannot be recorded: no attention layer .*\(transformer_blocks\.0\.attn: 608 queries, 608 keys",
        ),
        (
            "sd3",
            r"^MyNetwork cannot be recorded: no attention layer .*\(transformer_blocks\.0\.attn: 429 queries, 429 keys",
        ),
        ("z_image", r"^MyNetwork is not known, and .*cap_feats"),
    ],
)
def test_an_unknown_class_with_joint_attention(name: str, message: str) -> None:
    assert_refused(name, renamed(name), message)


@pytest.mark.parametrize("name", ["sd", "pixart_sigma", "sana"])
def test_an_unknown_class_with_cross_attention_is_recorded(name: str) -> None:
    pipe = renamed(name)
    for each in (pipe, pipeline(name)):
        with trace(each) as attention:
            draw(name, each)
        maps = attention.heatmap("circle"), attention.layers
        if each is pipe:
            expected = maps
    assert maps[1] == expected[1] and torch.equal(maps[0], expected[0])


def test_every_family_is_recorded_or_refused() -> None:
    """Those that are recorded are in the table; the others are tried here and below."""
    assert set(FAMILIES) - set(EXPECTED) <= {"hidream", "kandinsky22"}
    if "hidream" in FAMILIES:
        message = "^HiDreamImageTransformer2DModel is not known, and .*encoder_hidden_states_t5"
        assert_refused("hidream", pipeline("hidream"), message)


def test_a_denoiser_that_is_given_no_text() -> None:
    pipe = FAMILIES["sd"].build()
    del_text = {"encoder_hidden_states": torch.zeros(2, 77, 32)}

    def take_away(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, kwargs | del_text

    pipe.unet.register_forward_pre_hook(take_away, with_kwargs=True)
    assert_refused(
        "sd", pipe, r"^the words that UNet2DConditionModel reads are not known: nothing in its text was given by"
    )


# Calls


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_call_without_a_prompt(name: str) -> None:
    shapes = {
        "sd": {"prompt_embeds": (1, 77, 32), "negative_prompt_embeds": (1, 77, 32)},
        "flux": {"prompt_embeds": (1, 20, 32), "pooled_prompt_embeds": (1, 32)},
    }
    given = {argument: torch.randn(shape) for argument, shape in shapes[name].items()}
    message = "^this call has no prompt, so the words of its text are not known: give a prompt$"
    assert_refused(name, pipeline(name), message, prompt=None, **given)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_call_that_gives_no_picture(name: str) -> None:
    pipe = pipeline(name)
    before = state_of(pipe)
    call = FAMILIES[name].call | {"output_type": "latent"}
    with (
        pytest.raises(ValueError, match=r"^output_type='latent' gives no picture.*: use 'pil', 'np' or 'pt'$"),
        trace(pipe),
    ):
        pipe(prompt=PROMPT, **call)
    assert state_of(pipe) == before


def test_a_pipeline_that_reads_no_text() -> None:
    pipe = pipeline("kandinsky22")
    before = state_of(pipe)
    with pytest.raises(TypeError, match="KandinskyV22Pipeline cannot be recorded: it takes no"), trace(pipe):
        pass
    assert state_of(pipe) == before


@pytest.mark.parametrize("command", [["generate", "a cat"], ["attribute", "cat.png", "a cat"]])
def test_commands_refuse_such_a_pipeline_in_one_line(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("cat.png")
    pipeline("kandinsky22").save_pretrained("model")
    monkeypatch.setattr("sys.argv", ["unet-xattn", *command, "--model", "model", "--device", "cpu", "--out", "out"])
    with pytest.raises(SystemExit, match="1"):
        main()
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: KandinskyV22Pipeline cannot ") and not Path("out").exists()


# Settings


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_recording_beyond_the_budget_is_refused_after_a_step(name: str) -> None:
    """Its size is known then: what one step took, times the steps if these are kept apart."""
    pipe = pipeline(name)
    with trace(pipe, "full") as attention:
        draw(name, pipe, num_inference_steps=4)
    size = attention.recording.bytes(heads=True, steps=True)
    with trace(pipe, "full", budget=size):
        draw(name, pipe, num_inference_steps=4)
    passes: list[int] = []
    message = r"^this recording would take [\d.]+ MiB, its budget is [\d.]+ MiB: draw fewer pictures, use keep='mean'"
    hook = denoiser_of(name).register_forward_pre_hook(lambda *_: passes.append(1))
    with pytest.raises(ValueError, match=message), trace(pipe, "full", budget=size - 1):
        draw(name, pipe, num_inference_steps=4)
    hook.remove()
    assert len(passes) == 2  # the second step was not computed
    assert_refused(name, pipe, message, {"keep": "full", "budget": size - 1}, num_inference_steps=4)
    assert_refused(name, pipe, message, {"budget": 1000}, num_inference_steps=1)
    assert_refused(name, pipe, message, {"budget": 1000})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"words": ["zebra"]}, f"^'zebra' is in none of the prompts: {PROMPT}$"),
        ({"words": ["circle", "square blue"]}, "^'square blue' is in none of the prompts"),
        ({"layers": ["no_block.*"]}, "^nothing was recorded: .* no layer of it was chosen$"),
    ],
)
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_words_and_layers_that_are_not_there(name: str, settings: dict[str, list[str]], message: str) -> None:
    assert_refused(name, pipeline(name), message, settings)


def test_settings_are_checked_before_anything_is_drawn() -> None:
    wrong: dict[str, tuple[Any, str]] = {
        "words": ("red", "words is a list of texts, not 'red'"),
        "layers": ([1], r"layers is a list of texts, not '\[1\]'"),
        "keep": ("everything", "'mean' or 'full', not everything"),
    }
    for name, (value, message) in wrong.items():
        with pytest.raises(ValueError, match=message), trace(pipeline("sd"), **{name: value}):
            pass
