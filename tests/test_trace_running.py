"""Recording beside whatever else a pipeline does: threads, other traces, errors, precision, offloading, compiling."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from threading import Event, Thread, current_thread
from typing import Any

import accelerate
import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from families_of_pipelines import Deviations, state_of
from tiny_pipelines import FAMILIES, pipeline
from torch import nn

from pipelines import trace
from pipelines.tracing.watch import watched
from unet_xattn import AttentionTrace

PROMPT, OTHER = "a red circle left of a blue square", "a photo of a cat and a dog"
KINDS = ["sd", "sd3", "flux", "z_image"]
"""A family of each kind: cross-attention, joint, joint and single, single."""


def draw(pipe: DiffusionPipeline, prompt: str = PROMPT, **changes: Any) -> np.ndarray:
    size = {"height": 64, "width": 96, "num_inference_steps": 2}
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, **size | changes, generator=generator, output_type="np", return_dict=False)[0]


def like(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """A pipeline of the same networks, with a scheduler and tokenizers of its own: schedulers count their steps, and
    padding is a setting of a tokenizer, so that none of them can be used by two threads at once.
    """
    own = {name: deepcopy(part) for name, part in pipe.components.items() if name.startswith("tokenizer")}
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    other = type(pipe)(**pipe.components | own | {"scheduler": scheduler})
    other.set_progress_bar_config(disable=True)
    return other


def assert_same(found: AttentionTrace, expected: AttentionTrace) -> None:
    assert found.recording.texts == expected.recording.texts and found.layers == expected.layers
    for layer in expected.layers:
        torch.testing.assert_close(found.maps(layer), expected.maps(layer), rtol=0, atol=1e-6)


def traced(pipe: DiffusionPipeline, prompt: str = PROMPT, **changes: Any) -> AttentionTrace:
    with trace(pipe) as attention:
        draw(pipe, prompt, **changes)
    return attention


# Threads and other traces


@pytest.mark.parametrize("name", KINDS)
def test_a_call_in_another_thread_in_the_middle_of_a_recorded_one_is_not_recorded(name: str) -> None:
    pipe, other = pipeline(name), like(pipeline(name))  # hooks and all are on the networks that both have
    plain, beside, expected, found = draw(pipe), draw(other, OTHER), traced(pipe), []

    def draw_beside(*_: Any) -> dict[str, Any]:
        thread = Thread(target=lambda: found.append(draw(other, OTHER)))
        thread.start()
        thread.join()
        return {}

    with trace(pipe) as attention:
        pictures = draw(pipe, callback_on_step_end=draw_beside)
    np.testing.assert_array_equal(pictures, plain)
    for picture in found:
        np.testing.assert_allclose(picture, beside, atol=1e-5)
    assert len(found) == 2
    assert_same(attention, expected)


@pytest.mark.parametrize("part", ["unet", "unet.mid_block.attentions.0.transformer_blocks.0.attn2", "text_encoder"])
@pytest.mark.parametrize("when", ["register_forward_pre_hook", "register_forward_hook"])
def test_hooks_may_be_taken_off_while_another_thread_runs_them(part: str, when: str) -> None:
    """torch then calls a hook that is no longer there, and no longer knows its arguments."""
    pipe, other = pipeline("sd"), like(pipeline("sd"))
    name, _, path = part.partition(".")
    expected, is_inside, may_go_on, found = draw(other, OTHER), Event(), Event(), []
    main = current_thread()

    def wait(*_: Any) -> None:
        if current_thread() is not main and not is_inside.is_set():
            is_inside.set()
            may_go_on.wait(60)

    def draw_beside(*_: Any) -> dict[str, Any]:
        if not thread.is_alive():
            thread.start()
        is_inside.wait(60)
        return {}

    thread = Thread(target=lambda: found.append(draw(other, OTHER)))
    hook = getattr(getattr(pipe, name).get_submodule(path), when)(wait)
    with trace(pipe):
        draw(pipe, callback_on_step_end=draw_beside)
    may_go_on.set()
    thread.join()
    hook.remove()
    (picture,) = found
    np.testing.assert_allclose(picture, expected, atol=1e-5)


def test_a_call_of_the_recorded_pipeline_itself_in_another_thread_is_not_recorded() -> None:
    pipe = pipeline("sd")
    with trace(pipe) as attention:
        thread = Thread(target=draw, args=(pipe, OTHER))
        thread.start()
        thread.join()
        assert attention.layers == []
        draw(pipe)
    assert attention.prompts == [PROMPT]


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_threads_that_trace_the_same_networks_do_not_mix(name: str) -> None:
    jobs = [(like(pipeline(name)), prompt) for prompt in (PROMPT, OTHER, "a dog")]
    expected = [traced(*job) for job in jobs]
    before = state_of(pipeline(name))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda job: traced(*job), jobs))
    for attention, wanted in zip(found, expected, strict=True):
        assert_same(attention, wanted)
    assert state_of(pipeline(name)) == before


def test_the_innermost_of_nested_traces_records() -> None:
    pipe = pipeline("sd")
    with trace(pipe) as outer:
        with trace(pipe) as inner:
            draw(pipe)
        assert outer.layers == []
        draw(pipe, OTHER)
    assert (outer.prompts, inner.prompts) == ([OTHER], [PROMPT])
    assert type(pipe) is diffusers.StableDiffusionPipeline


def test_two_pipelines_of_the_same_networks_are_traced_side_by_side() -> None:
    pipe, other = pipeline("sd"), like(pipeline("sd"))
    with trace(pipe) as first, trace(other) as second:
        draw(pipe)
        draw(other, OTHER)
    assert_same(first, traced(pipe))
    assert_same(second, traced(other, OTHER))


def test_a_traced_call_in_the_middle_of_another_is_recorded_by_itself() -> None:
    pipe, other = pipeline("sd"), like(pipeline("sd"))
    expected = traced(pipe), traced(other, OTHER)
    with trace(pipe) as first, trace(other) as second:
        draw(pipe, callback_on_step_end=lambda *_: {"drawn": draw(other, OTHER)})
    assert_same(first, expected[0])
    assert_same(second, expected[1])


def test_a_second_call_replaces_the_first_and_a_third_outside_does_nothing() -> None:
    pipe = pipeline("flux")
    with trace(pipe) as attention:
        draw(pipe, OTHER)
        draw(pipe)
    draw(pipe, OTHER)
    assert_same(attention, traced(pipe))


# Nothing stays behind


def test_a_traced_pipeline_is_still_what_it_was() -> None:
    pipe = pipeline("sd")
    kind, before = type(pipe), state_of(pipe)
    with trace(pipe):
        assert isinstance(pipe, kind) and type(pipe).__name__ == kind.__name__
        assert type(pipe).__module__ == kind.__module__
        assert diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe).unet is pipe.unet
        draw(pipe)
    assert state_of(pipe) == before


class Stop(Exception):  # noqa: N818
    """An error in the middle of a call."""


def stop(*_: Any, **__: Any) -> None:
    raise Stop


def stop_in_step(pipe: DiffusionPipeline) -> None:
    draw(pipe, callback_on_step_end=stop)


def stop_in_layer(pipe: DiffusionPipeline) -> None:
    denoiser = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
    layer = [module for module in denoiser.modules() if hasattr(module, "processor")][1]
    hook = layer.register_forward_pre_hook(stop)
    try:
        draw(pipe)
    finally:
        hook.remove()


def stop_in_encoder(pipe: DiffusionPipeline) -> None:
    hook = pipe.text_encoder.register_forward_hook(stop)
    try:
        draw(pipe)
    finally:
        hook.remove()


def stop_by_a_wrong_argument(pipe: DiffusionPipeline) -> None:
    with suppress(ValueError, KeyError):
        draw(pipe, callback_on_step_end=dict, callback_on_step_end_tensor_inputs=["nothing"])
    stop()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("fail", [stop_in_step, stop_in_layer, stop_in_encoder, stop_by_a_wrong_argument])
def test_after_an_error_everything_is_as_before(name: str, fail: Callable[[DiffusionPipeline], None]) -> None:
    pipe = pipeline(name)
    plain, expected, before = draw(pipe), traced(pipe), state_of(pipe)
    with trace(pipe) as attention:
        with pytest.raises(Stop):
            fail(pipe)
        assert attention.layers == []
        draw(pipe)  # the next call is recorded as if nothing had been
    assert_same(attention, expected)
    with pytest.raises(Stop), trace(pipe):
        fail(pipe)
    assert state_of(pipe) == before
    np.testing.assert_array_equal(draw(pipe), plain)


# Precision


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float16) for name in ("sd", "sana", "sd3", "flux", "z_image")),
        *((name, torch.bfloat16) for name in ("sd", "sdxl", "pixart_sigma", "flux", "chroma")),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated")  # SDXL's call calls it
def test_half_precision_is_recorded_to_eight_of_its_eps(name: str, dtype: torch.dtype) -> None:
    pipe = FAMILIES[name].build().to(dtype)
    plain = FAMILIES[name].draw(pipe, PROMPT)
    attention, found = AttentionTrace(), Deviations()
    with watched(pipe, attention, found):
        pictures = FAMILIES[name].draw(pipe, PROMPT)
    np.testing.assert_array_equal(pictures, plain)
    assert max(found.rows, found.shares, found.outputs) < 8
    for layer in attention.layers:
        maps = attention.maps(layer)
        ones = torch.ones(maps.shape[1:])  # of float32
        torch.testing.assert_close(maps.sum(dim=0), ones, rtol=0, atol=8 * torch.finfo(dtype).eps)


# Offloading and compiling


def offload_parts(pipe: DiffusionPipeline, denoiser: nn.Module) -> None:
    accelerate.cpu_offload(denoiser, torch.device("cpu"))


def offload_models(pipe: DiffusionPipeline, denoiser: nn.Module) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def offload_groups(pipe: DiffusionPipeline, denoiser: nn.Module) -> None:
    cpu = torch.device("cpu")
    pipe.enable_group_offload(cpu, cpu, offload_type="block_level", num_blocks_per_group=1)


def cast_layerwise(pipe: DiffusionPipeline, denoiser: nn.Module) -> None:
    denoiser.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


@pytest.mark.parametrize("name", ["sd", "flux"])
@pytest.mark.parametrize("offload", [offload_parts, offload_models, offload_groups, cast_layerwise])
def test_offloaded_networks_are_recorded(name: str, offload: Callable[[DiffusionPipeline, nn.Module], None]) -> None:
    """From the CPU to the CPU: the hooks that move weights run all the same."""
    pipe = FAMILIES[name].build()
    offload(pipe, pipe.unet if name == "sd" else pipe.transformer)
    plain, before = draw(pipe), state_of(pipe)
    with trace(pipe) as attention:
        np.testing.assert_array_equal(draw(pipe), plain)
    assert state_of(pipe) == before
    assert attention.layers == traced(pipeline(name)).layers
    if offload is not cast_layerwise:
        torch.testing.assert_close(attention.heatmap("circle"), traced(pipeline(name)).heatmap("circle"))


def replace_by_compiled(pipe: DiffusionPipeline, part: str, backend: Callable) -> None:
    setattr(pipe, part, torch.compile(getattr(pipe, part), backend=backend))


def compile_in_place(pipe: DiffusionPipeline, part: str, backend: Callable) -> None:
    getattr(pipe, part).compile(backend=backend)


def compile_blocks(pipe: DiffusionPipeline, part: str, backend: Callable) -> None:
    getattr(pipe, part).compile_repeated_blocks(backend=backend)


@pytest.mark.parametrize(
    ("name", "compile_"),
    [
        ("sd", compile_in_place),
        ("flux", replace_by_compiled),
        ("flux", compile_in_place),
        ("flux", compile_blocks),
        ("z_image", compile_blocks),
    ],
)
def test_compiled_networks_are_recorded(name: str, compile_: Callable[..., None]) -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable:
        graphs.append(graph)
        return graph.forward

    pipe = FAMILIES[name].build()
    compile_(pipe, "unet" if name == "sd" else "transformer", backend)
    plain, before = draw(pipe), state_of(pipe)
    count = len(graphs)
    with trace(pipe) as attention:
        np.testing.assert_array_equal(draw(pipe), plain)
    assert_same(attention, traced(pipeline(name)))
    assert state_of(pipe) == before
    np.testing.assert_array_equal(draw(pipe), plain)
    assert len(graphs) == count > 0  # it was compiled, and is not compiled again
