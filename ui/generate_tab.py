"""Type a prompt, see the picture, and see which word drew what."""

import random
import time
from typing import Any

import gradio as gr
import torch

from pipelines import TextToImagePipeline, trace
from ui.checks import check_prompt, parse_seed
from ui.viewer import attention_viewer, payload
from unet_xattn import AttentionTrace
from unet_xattn.words import unknown_words

EXAMPLES = [
    "a red circle left of a blue square",
    "three small green triangles on a gray background",
    "a large purple star above a small orange heart",
]


def generate(
    pipe: TextToImagePipeline, prompt: str, seed: str | int, steps: int, guidance: float
) -> tuple[AttentionTrace, str]:
    """Draw a prompt and watch: the picture with what the cross-attention saw, and a line about it.

    Raises:
        ValueError: something typed is out of its range; the message says what, in one line.
    """
    check_prompt(prompt)
    number = parse_seed(seed)
    start = time.perf_counter()
    with trace(pipe) as attention:
        generator = torch.Generator().manual_seed(number)
        pipe(prompt, num_inference_steps=steps, guidance_scale=guidance, generator=generator)
    message = f"Seed {number}, {steps} steps, guidance {guidance:g}: drawn in {time.perf_counter() - start:.1f} s."
    if unknown := dict.fromkeys(unknown_words(prompt, pipe.tokenizer)):
        message += " The model has never read: " + ", ".join(f'"{word}"' for word in unknown) + "."
    return attention, message


def answer(pipe: TextToImagePipeline, prompt: str, seed: str | int, steps: float, guidance: float) -> dict[str, Any]:
    """What the viewer shows of a newly drawn picture: `ui.viewer.payload` with a note. Raises as `generate` does."""
    attention, message = generate(pipe, prompt, seed, int(steps), float(guidance))
    return payload(attention) | {"note": message}


def new_seed() -> str:
    """A seed nobody chose, short enough to be read out to someone."""
    return str(random.randrange(10**6))


def generate_tab(page: gr.Blocks, pipe: TextToImagePipeline) -> None:
    """Lay the tab out where the caller is, and wire it; `page` is the whole page, which draws once when it opens."""

    def draw(prompt: str, seed: str, steps: float, guidance: float) -> dict[str, Any]:
        try:
            return answer(pipe, prompt, seed, steps, guidance)
        except ValueError as error:
            return {"error": str(error)}

    def draw_for_client(prompt: str, seed: str = "0", steps: int = 20, guidance: float = 3.0) -> dict[str, Any]:
        """Draw a prompt: the picture, its words, where each landed (see `ui.viewer.payload`) and a note."""
        try:
            return answer(pipe, prompt, seed, steps, guidance)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

    with gr.Row(equal_height=True):
        prompt = gr.Textbox(
            EXAMPLES[0], label="Prompt", show_label=False, container=False, max_lines=4, scale=4, min_width=240
        )
        button = gr.Button("Generate", variant="primary", scale=1, min_width=120)
        dice = gr.Button("New seed", scale=1, min_width=120)
    with gr.Row():
        with gr.Column(scale=2):
            viewer = attention_viewer()
        with gr.Column(scale=1):
            # Not a number field: a browser's numbers end at 2**53.
            seed = gr.Textbox("0", label="Seed")
            steps = gr.Slider(1, 100, 20, step=1, precision=0, label="Steps")
            guidance = gr.Slider(0, 10, 3, step=0.1, label="Guidance")
            examples = gr.Examples(EXAMPLES, prompt)

    # The model has one scheduler, so one picture is drawn at a time, whoever asks. Progress is shown on the prompt: on
    # the viewer it would fade the picture.
    drawing: dict[str, Any] = {
        "inputs": [prompt, seed, steps, guidance],
        "outputs": viewer,
        "concurrency_id": "model",
        "show_progress": "minimal",
        "show_progress_on": prompt,
        "api_visibility": "private",
    }
    page.load(draw, **drawing)
    gr.on([button.click, prompt.submit, seed.submit], draw, **drawing)
    dice.click(new_seed, outputs=seed, api_visibility="private").then(draw, **drawing)
    examples.load_input_event.then(draw, **drawing)
    gr.api(draw_for_client, api_name="generate", concurrency_id="model")
