import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from PIL import Image
from torch import Tensor

from pipelines import TextToImagePipeline, attribute, trace, verify
from pipelines.components import to_tensor
from pipelines.scenes.scene import Object, Scene
from pipelines.scenes.shapes import render, scene
from pipelines.tracing.attribute import reading_shape
from pipelines.tracing.verify import tolerances
from unet_xattn import AttentionTrace, CrossAttentionUNet
from unet_xattn.words import split_words

PROMPT = "a red circle left of a blue square"
OTHER = "three small green stars on a black ground"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pipe: TextToImagePipeline, prompt: str | list[str] = PROMPT, seed: int = 0, **kwargs: object) -> Tensor:
    """Pictures (B, 3, h, w) in [0, 1]."""
    settings = {"generator": seeded(seed), "num_inference_steps": 4, "output_type": "pt"} | kwargs
    return pipe(prompt, **settings).images


def traced(
    pipe: TextToImagePipeline, prompt: str | list[str] = PROMPT, seed: int = 0, **kwargs: object
) -> AttentionTrace:
    with trace(pipe) as attention:
        draw(pipe, prompt, seed, **kwargs)
    return attention


def assert_same_trace(found: AttentionTrace, expected: AttentionTrace) -> None:
    assert found.prompts == expected.prompts and found.layers == expected.layers
    for layer in expected.layers:
        for branch in ("prompt", "negative"):
            torch.testing.assert_close(
                found.maps(layer, branch=branch), expected.maps(layer, branch=branch), rtol=1e-3, atol=1e-4
            )


def test_recording_leaves_the_picture_unchanged(tiny_pipe: TextToImagePipeline) -> None:
    plain = draw(tiny_pipe)
    with trace(tiny_pipe) as attention:
        recorded = draw(tiny_pipe)
    assert (recorded - plain).abs().max() < 1 / 255
    assert plain.std() > 0.05  # not a flat picture
    assert [word.text for word in attention.words] == PROMPT.split()
    torch.testing.assert_close(draw(tiny_pipe), plain, rtol=0, atol=0)  # and no recorder stays behind


def test_a_seed_gives_the_same_picture_alone_and_in_a_batch_recorded_or_not(tiny_pipe: TextToImagePipeline) -> None:
    prompts = [PROMPT, OTHER, "a star"]
    alone = torch.cat([draw(tiny_pipe, prompt, seed) for seed, prompt in enumerate(prompts)])
    generators = [seeded(seed) for seed in range(3)]
    together = draw(tiny_pipe, prompts, generator=generators)
    assert (together - alone).abs().max() < 1 / 255
    with trace(tiny_pipe) as attention:
        recorded = draw(tiny_pipe, prompts, generator=[seeded(seed) for seed in range(3)])
    assert (recorded - alone).abs().max() < 1 / 255
    assert attention.prompts == prompts
    one = traced(tiny_pipe, OTHER, seed=1)
    torch.testing.assert_close(attention.heatmap("green", image=1), one.heatmap("green"), rtol=1e-3, atol=1e-4)
    assert (attention.heatmap("a", image=0) - attention.heatmap("a", image=2)).abs().max() > 1e-3


def test_pictures_of_one_prompt_have_a_map_each(tiny_pipe: TextToImagePipeline) -> None:
    with trace(tiny_pipe) as attention:
        draw(tiny_pipe, [PROMPT, OTHER], num_images_per_prompt=2)
    assert attention.prompts == [PROMPT, PROMPT, OTHER, OTHER]
    assert not torch.equal(attention.heatmap("red", image=0), attention.heatmap("red", image=1))
    assert attention.words_of(3)[0].text == "three"


def test_maps_have_the_size_of_the_picture_whatever_its_shape(tiny_pipe: TextToImagePipeline) -> None:
    attention = traced(tiny_pipe, height=24, width=48)
    assert attention.heatmap("circle").shape == (24, 48)
    grids = {attention.maps(layer).shape[-2:] for layer in attention.layers}
    assert grids == {(6, 12), (3, 6)}


def test_the_recorded_steps_are_those_of_the_sampler(tiny_pipe: TextToImagePipeline) -> None:
    with trace(tiny_pipe, keep="full") as attention:
        draw(tiny_pipe, num_inference_steps=3)
    assert attention.steps == [0, 1, 2]
    # The picture changes from step to step, so its attention does.
    layer = attention.layers[0]
    assert not torch.allclose(attention.maps(layer, step=0), attention.maps(layer, step=2), atol=1e-4)


def test_outside_the_guidance_interval_only_the_prompt_is_recorded(tiny_pipe: TextToImagePipeline) -> None:
    with trace(tiny_pipe, keep="step") as attention:
        draw(tiny_pipe, guidance_interval=(0.0, 0.6))
    layer = attention.layers[0]
    assert attention.maps(layer, step=0).shape == attention.maps(layer, step=3).shape
    assert attention.maps(layer, step=3, branch="negative") is not None
    with pytest.raises(ValueError, match="at step 0 of branch 'negative'"):
        attention.maps(layer, step=0, branch="negative")


def test_a_later_call_replaces_the_recording(tiny_pipe: TextToImagePipeline) -> None:
    with trace(tiny_pipe) as attention:
        draw(tiny_pipe, OTHER)
        draw(tiny_pipe)
    assert_same_trace(attention, traced(tiny_pipe))


def test_after_the_block_nothing_is_recorded(tiny_pipe: TextToImagePipeline) -> None:
    attention = traced(tiny_pipe)
    draw(tiny_pipe, OTHER)
    assert attention.prompts == [PROMPT]
    with pytest.raises(KeyError), trace(tiny_pipe) as broken:
        raise KeyError("something else went wrong in the block")
    draw(tiny_pipe)
    assert broken.layers == []


def test_another_pipeline_is_not_recorded(tiny_pipe: TextToImagePipeline) -> None:
    other = TextToImagePipeline(**tiny_pipe.components)
    other.set_progress_bar_config(disable=True)
    with trace(tiny_pipe) as attention:
        draw(other)
    assert attention.layers == []


def test_two_pipelines_are_traced_side_by_side(tiny_pipe: TextToImagePipeline) -> None:
    other = TextToImagePipeline(**tiny_pipe.components | {"scheduler": FlowMatchEulerDiscreteScheduler()})
    other.set_progress_bar_config(disable=True)
    with trace(tiny_pipe) as first, trace(other) as second:
        draw(tiny_pipe, PROMPT)
        draw(other, OTHER)
    assert_same_trace(first, traced(tiny_pipe, PROMPT))
    assert_same_trace(second, traced(tiny_pipe, OTHER))


def test_threads_that_share_a_pipeline_draw_their_own_pictures(tiny_pipe: TextToImagePipeline) -> None:
    expected = [draw(tiny_pipe, PROMPT, seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: draw(tiny_pipe, PROMPT, seed), range(4)))
    for picture, wanted in zip(found, expected, strict=True):
        assert (picture - wanted).abs().max() < 1 / 255


def test_threads_that_trace_one_pipeline_do_not_mix(tiny_pipe: TextToImagePipeline) -> None:
    jobs = [(PROMPT, 0), (OTHER, 1), ("a star", 2)]
    expected = [traced(tiny_pipe, *job) for job in jobs]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda job: traced(tiny_pipe, *job), jobs))
    for attention, wanted in zip(found, expected, strict=True):
        assert_same_trace(attention, wanted)


def test_prompts_are_encoded_by_many_threads_at_once(tiny_pipe: TextToImagePipeline) -> None:
    """Padding is a setting of the tokenizer itself: one thread must not change it while another encodes."""
    prompts = [PROMPT, "a star"]
    split_words(PROMPT, tiny_pipe.tokenizer)
    before = tiny_pipe.tokenizer.backend_tokenizer.padding
    expected = tiny_pipe.encode_prompt(prompts)[1]
    assert tiny_pipe.tokenizer.backend_tokenizer.padding == before

    def read(i: int) -> bool:
        if i % 2:
            return len(split_words(PROMPT, tiny_pipe.tokenizer)) == 8
        return torch.equal(tiny_pipe.encode_prompt(prompts)[1], expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(80)))


def test_a_call_in_another_thread_is_not_recorded(tiny_pipe: TextToImagePipeline) -> None:
    with trace(tiny_pipe) as attention:
        thread = threading.Thread(target=draw, args=(tiny_pipe, OTHER))
        thread.start()
        thread.join()
        assert attention.layers == []
        draw(tiny_pipe)
    assert attention.prompts == [PROMPT]


def test_a_trace_can_be_passed_to_the_call_itself(tiny_pipe: TextToImagePipeline) -> None:
    attention = AttentionTrace()
    draw(tiny_pipe, attention=attention)
    assert_same_trace(attention, traced(tiny_pipe))


def test_a_trace_without_a_call_is_an_error(tiny_pipe: TextToImagePipeline) -> None:
    with trace(tiny_pipe) as attention:
        pass
    with pytest.raises(ValueError, match="nothing has been recorded yet"):
        attention.heatmap("red")


def test_a_layer_that_is_not_recorded_is_an_error(
    tiny_pipe: TextToImagePipeline, make_unet: Callable[..., CrossAttentionUNet]
) -> None:
    class Silent(CrossAttentionUNet):
        """A modified model that no longer records its first layer."""

        def forward(self, *args: object, record: Callable | None = None, **kwargs: object) -> object:
            def some(name: str, *rest: object) -> None:
                if name != self.attention_layers[0]:
                    record(name, *rest)

            return super().forward(*args, record=record and some, **kwargs)

    silent = Silent.from_config(make_unet().config)
    pipe = TextToImagePipeline(**tiny_pipe.components | {"unet": silent})
    pipe.set_progress_bar_config(disable=True)
    draw(pipe)
    with pytest.raises(RuntimeError, match=r"attention was not recorded.*'down\.0\.0'"), trace(pipe):
        draw(pipe)


@pytest.mark.parametrize("wrong", [None, "shapes", object()])
def test_only_pipelines_can_be_recorded(wrong: object) -> None:
    with (
        pytest.raises(TypeError, match=f"only a pipeline of diffusers can be recorded, got a {type(wrong).__name__}"),
        trace(wrong),
    ):
        pass


def test_an_unconditional_pipeline_is_refused() -> None:
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    pipe = DDPMPipeline(unet, DDPMScheduler())
    with pytest.raises(TypeError, match="DDPMPipeline cannot be recorded: it takes no prompt"), trace(pipe):
        pass


def test_keep_is_checked_before_anything_is_drawn(tiny_pipe: TextToImagePipeline) -> None:
    with pytest.raises(ValueError, match="'mean' or 'full', not everything"), trace(tiny_pipe, keep="everything"):
        pass


# Verification.


def test_a_faithful_recording_is_verified(tiny_pipe: TextToImagePipeline) -> None:
    found = verify(tiny_pipe, PROMPT)
    assert found.layers == len(tiny_pipe.unet.attention_layers)
    assert set(found.deviations) == set(found.tolerances) and max(found.deviations.values()) < 1e-4
    assert str(found).startswith("TextToImagePipeline, CrossAttentionUNet, float32, ")


HALF = [torch.float16, torch.bfloat16]


def in_dtype(pipe: TextToImagePipeline, dtype: torch.dtype, kind: type[CrossAttentionUNet]) -> TextToImagePipeline:
    """A pipeline of the same weights in another dtype, with a UNet of another class."""
    unet = kind.from_config(pipe.unet.config)
    unet.load_state_dict(pipe.unet.state_dict())
    text_encoder = copy.deepcopy(pipe.text_encoder).to(dtype)
    parts = pipe.components | {"unet": unet.to(dtype), "text_encoder": text_encoder}
    changed = TextToImagePipeline(**parts)
    changed.set_progress_bar_config(disable=True)
    return changed


@pytest.mark.parametrize("dtype", HALF)
def test_a_faithful_recording_in_half_precision_is_verified(tiny_pipe: TextToImagePipeline, dtype: torch.dtype) -> None:
    found = verify(in_dtype(tiny_pipe, dtype, CrossAttentionUNet), PROMPT)
    # The rounding of this dtype is seen, and is well within what is allowed.
    allowed = tolerances(dtype, tokens=10)
    assert found.deviations["outputs"] > tolerances(torch.float32, 10)["outputs"]
    assert all(found.deviations[name] < most / 2 for name, most in allowed.items())


def the_layer_before(weights: Tensor, seen: list[Tensor]) -> Tensor:
    seen.append(weights)
    return next((other for other in seen[-2::-1] if other.shape == weights.shape), weights)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize(
    "lie",
    [
        lambda w, _: w.roll(1, dims=1),  # another head
        lambda w, _: w.roll(1, dims=-1),  # another token
        lambda w, _: w.roll(1, dims=-2),  # another position
        lambda w, _: 1.02 * w,
        the_layer_before,
    ],
    ids=["head", "token", "position", "scaled", "layer"],
)
def test_wrong_weights_are_detected_in_every_dtype(tiny_pipe: TextToImagePipeline, dtype: torch.dtype, lie) -> None:
    class Liar(CrossAttentionUNet):
        def forward(self, *args: object, record: Callable[..., None] | None = None, **kwargs: object) -> object:
            seen: list[Tensor] = []
            changed = record and (lambda layer, weights, grid: record(layer, lie(weights, seen), grid))
            return super().forward(*args, record=changed, **kwargs)

    with pytest.raises(RuntimeError, match=r"not what the model does: .*(rows|outputs) by"):
        verify(in_dtype(tiny_pipe, dtype, Liar), PROMPT, steps=1)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_a_recording_that_changes_the_prediction_is_detected_in_every_dtype(
    tiny_pipe: TextToImagePipeline, dtype: torch.dtype
) -> None:
    class Shy(CrossAttentionUNet):
        def forward(self, *args: object, record: object = None, **kwargs: object) -> object:
            out = super().forward(*args, record=record, **kwargs)
            return type(out)(sample=out.sample * 1.1) if record else out

    with pytest.raises(RuntimeError, match="prediction by"):
        verify(in_dtype(tiny_pipe, dtype, Shy), PROMPT, steps=1)


@pytest.mark.parametrize(
    ("lie", "what"),
    [(lambda w: w.roll(1, dims=-1), "outputs"), (lambda w: 1.01 * w, "rows"), (lambda w: w * 0, "rows")],
)
def test_recording_other_weights_than_those_used_is_detected(
    tiny_pipe: TextToImagePipeline, make_unet: Callable[..., CrossAttentionUNet], lie: Callable, what: str
) -> None:
    class Liar(CrossAttentionUNet):
        def forward(self, *args: object, record: Callable[..., None] | None = None, **kwargs: object) -> object:
            changed = record and (lambda layer, weights, grid: record(layer, lie(weights), grid))
            return super().forward(*args, record=changed, **kwargs)

    liar = Liar.from_config(make_unet().config)
    liar.load_state_dict(make_unet().state_dict())
    pipe = TextToImagePipeline(**tiny_pipe.components | {"unet": liar})
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(RuntimeError, match=f"not what the model does: .*{what} by"):
        verify(pipe, PROMPT)


def test_recording_that_changes_the_picture_is_detected(
    tiny_pipe: TextToImagePipeline, make_unet: Callable[..., CrossAttentionUNet]
) -> None:
    class Shy(CrossAttentionUNet):
        def forward(self, *args: object, record: object = None, **kwargs: object) -> object:
            out = super().forward(*args, record=record, **kwargs)
            return type(out)(sample=out.sample * 1.1) if record else out

    shy = Shy.from_config(make_unet().config)
    shy.load_state_dict(make_unet().state_dict())
    pipe = TextToImagePipeline(**tiny_pipe.components | {"unet": shy})
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(RuntimeError, match="picture by"):
        verify(pipe, PROMPT)


# An existing picture.


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(render(scene(0, 3), 32)[0])


def test_a_picture_is_read_at_each_level_with_noise_of_the_seed(
    tiny_pipe: TextToImagePipeline, picture: Image.Image
) -> None:
    attention = attribute(tiny_pipe, picture, PROMPT, levels=(0.4, 0.8), draws=2, seed=5, keep="step")
    assert attention.steps == [0, 1] and attention.layers == tiny_pipe.unet.attention_layers
    assert attention.heatmap("circle").shape == (32, 32)
    clean = to_tensor(np.array(picture)[None]).repeat(2, 1, 1, 1)
    noisy = 0.2 * clean + 0.8 * torch.randn(2, 3, 32, 32, generator=seeded(5))
    memory, mask = tiny_pipe.encode_prompt([PROMPT] * 2)
    seen = {}
    with torch.no_grad():
        tiny_pipe.unet(noisy, 800, memory, mask, record=lambda layer, w, grid: seen.update({layer: (w, grid)}))
    for layer, (weights, grid) in seen.items():
        expected = weights.mean(dim=(0, 1)).T.unflatten(-1, grid)
        torch.testing.assert_close(attention.maps(layer, step=1), expected, rtol=1e-4, atol=1e-6)


def test_attribute_leaves_the_picture_unchanged_and_is_deterministic(
    tiny_pipe: TextToImagePipeline, picture: Image.Image
) -> None:
    before = picture.tobytes()
    first, again = (attribute(tiny_pipe, picture, PROMPT) for _ in range(2))
    other = attribute(tiny_pipe, picture, PROMPT, seed=1)
    assert picture.tobytes() == before
    assert torch.equal(first.heatmap("red"), again.heatmap("red"))
    assert not torch.equal(first.heatmap("red"), other.heatmap("red"))


@pytest.mark.parametrize(
    ("size", "shape", "cut_off"),
    [
        ((40, 40), (32, 32), 0.0),
        ((192, 64), (32, 96), 0.0),  # the whole picture
        ((64, 192), (96, 32), 0.0),
        ((50, 90), (56, 32), 0.028),  # the nearest multiple of 8 pixels
        ((33, 32), (32, 32), 0.03),
        ((1280, 64), (32, 128), 0.8),  # 20:1, of which 4:1 are read
        ((1, 300), (128, 32), 0.987),
    ],
)
def test_a_picture_is_read_in_its_own_shape_and_what_is_cut_off_is_told(
    tiny_pipe: TextToImagePipeline, size: tuple[int, int], shape: tuple[int, int], cut_off: float
) -> None:
    attention = attribute(tiny_pipe, Image.new("LA", size), PROMPT, draws=1, levels=(0.5,))
    assert attention.heatmap("square").shape == attention.pictures[0].shape[:2] == shape
    assert attention.recording.settings["cut_off"] == pytest.approx(cut_off, abs=1e-3)


def test_a_picture_that_its_file_turns_is_read_upright(tiny_pipe: TextToImagePipeline) -> None:
    turned = Image.new("RGB", (64, 32))
    turned.getexif()[0x0112] = 6
    assert attribute(tiny_pipe, turned, PROMPT, draws=1, levels=(0.5,)).size == (64, 32)


def test_words_are_found_in_all_of_a_wide_picture() -> None:
    pipe = TextToImagePipeline.from_pretrained("shapes")
    objects = (Object("circle", "red", "big", 0.1, 0.5, 0.18), Object("square", "blue", "big", 0.9, 0.5, 0.18))
    picture, masks = render(Scene("two", objects, "gray", None), (64, 192))
    assert reading_shape(pipe, 192, 64) == (64, 192)
    attention = attribute(pipe, Image.fromarray(picture), "a red circle and a blue square", keep="head")
    for mask, words in zip(masks, (("red", "circle"), ("blue", "square")), strict=True):
        for word in words:
            heat = attention.heatmap(word, reduce="calibrated").numpy()
            assert mask.flat[heat.argmax()] > 0.5, word


def test_words_unknown_to_the_model_are_told(tiny_pipe: TextToImagePipeline, picture: Image.Image) -> None:
    attention = attribute(tiny_pipe, picture, "a red zebra", draws=1, levels=(0.5,))
    assert attention.recording.settings["unknown_words"] == ["zebra"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"caption": "  "}, "the caption is empty"),
        ({"levels": ()}, "noise levels must lie between 0 and 1"),
        ({"levels": (0.5, 1.0)}, r"between 0 and 1, got \(0.5, 1.0\)"),
        ({"draws": 0}, "draws must be 1 or more"),
        ({"caption": "red " * 300}, "tokens, this model reads"),
        ({"keep": "all"}, "keep can name"),
    ],
)
def test_wrong_arguments_are_refused(
    tiny_pipe: TextToImagePipeline, picture: Image.Image, arguments: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        attribute(tiny_pipe, picture, **({"caption": PROMPT} | arguments))


def test_a_whole_picture_is_read_with_white_beside_it(tiny_pipe: TextToImagePipeline) -> None:
    picture = Image.new("RGB", (1280, 64), (10, 20, 30))
    attention = attribute(tiny_pipe, picture, PROMPT, draws=1, levels=(0.5,), fit="pad")
    pixels = attention.pictures[0].float().mean(dim=(1, 2))  # of each row
    assert attention.recording.settings["cut_off"] == 0 and attention.recording.settings["padded"] == 0.8
    assert pixels[0] == pixels[-1] == 255 and pixels[16] < 40
    with pytest.raises(ValueError, match="fit is 'crop' or 'pad', got 'fill'"):
        attribute(tiny_pipe, picture, PROMPT, fit="fill")
