"""The page: tabs and wiring."""

import socket
import time
from importlib.util import find_spec
from typing import Any

import gradio as gr
import torch

from pipelines import TextToImagePipeline
from ui.generate_tab import generate_tab
from ui.inspect_tab import inspect_tab
from ui.kept import Kept
from ui.models import RUNS, Models
from ui.picture_tab import picture_tab
from ui.runs import find_run
from ui.train_tab import model_of, train_tab
from ui.translate_tab import translate_tab

# Grey with blue controls: what has any other colour is a picture or a map. System fonts, so that nothing is fetched.
# The shades are those that keep text at a contrast of 4.5 in light and dark (WCAG AA), which the defaults do not.
THEME = gr.themes.Base(
    primary_hue="blue",
    neutral_hue="zinc",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_title_text_color="*neutral_600",
    color_accent="*primary_700",
    slider_color="*primary_700",
    slider_color_dark="*primary_400",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_800",
)
CSS = """
.dark { --color-accent: var(--primary-300); }
.head > :first-child { min-width: 16rem; }
.gradio-container { overflow: clip !important; }
@media (max-width: 480px) { .tab-container button { padding: 0 0.15rem; font-size: 0.75rem; } }
.html-container:has(.attention-viewer, .alignment, .query-diagram) { padding: 0; }
"""


MOST_BYTES = 2**30
"""Of a file that is brought: a folder of pictures to train on."""


def build(model: str | TextToImagePipeline = "shapes") -> gr.Blocks:
    """The page of a model: a bundled name, a folder, a hub id or a pipeline. It uses a GPU where there is one."""
    models, kept = Models(model), Kept()

    def list_models() -> list[str]:
        """The names of the models there are; the first is the one the page opened with."""
        return models.names()

    def open_run(run: str) -> tuple[Any, Any, Any]:
        try:
            name = model_of(models, run)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None
        prompts = find_run(RUNS, run).prompts
        shown = prompts[0] if prompts else gr.skip()
        return gr.Dropdown(models.names(), value=name), gr.Tabs(selected="generate"), shown

    def to_prompt(text: str) -> tuple[str, gr.Tabs]:
        return text, gr.Tabs(selected="generate")

    with gr.Blocks(title="unet-xattn", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        with gr.Row(elem_classes="head"):
            gr.Markdown("# Which word drew what")
            model_name = gr.Dropdown(
                models.names(), value=models.first, label="Model", allow_custom_value=True, scale=0, min_width=220
            )
        with gr.Tabs() as tabs:
            with gr.Tab("Generate", id="generate"):
                prompt, draw_after = generate_tab(page, models, kept, model_name)
            with gr.Tab("Your picture"):
                picture_tab(models, kept, model_name)
            with gr.Tab("Train"):
                training = train_tab(page, models)
            with gr.Tab("Translate"):
                translation, use_as_prompt = translate_tab(models, model_name)
            with gr.Tab("Inspect"):
                inspect_tab(models, model_name)
        opened = training.open.click(open_run, training.run, [model_name, tabs, prompt], api_visibility="private")
        draw_after(opened, other_model=True)
        used = use_as_prompt.click(to_prompt, translation, [prompt, tabs], api_visibility="private")
        draw_after(used)
        gr.api(list_models, api_name="models")
    return page.queue(max_size=32)


def launch(
    model: str | TextToImagePipeline = "shapes",
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: str | None = None,
    share: bool = False,
    open_browser: bool = False,
    mcp: bool = False,
    started: float | None = None,
    block: bool = True,
) -> gr.Blocks:
    """Open the page and serve it until interrupted.

    Args:
        auth: "user:password" that is asked for; by default nobody is asked.
        share: let gradio open a public address that leads here.
        open_browser: open it in this machine's browser.
        mcp: offer the API to language models too (Model Context Protocol), below /gradio_api/mcp.
        started: when the command began (seconds since the epoch), to say how long a person waited for the page.
        block: wait here; otherwise return while the page is served (close it with `page.close()`).

    Raises:
        ValueError: the port cannot be had, there is no such model, or an option makes no sense; before anything is
            loaded or served.
    """
    started = time.time() if started is None else started
    _check_port(host, port)
    user, colon, password = (auth or "").partition(":")
    if auth is not None and not (user and colon and password):
        raise ValueError("--auth is user:password, for example --auth ada:enigma")
    if mcp and find_spec("mcp") is None:
        raise ValueError("--mcp needs one more package: pip install 'unet-xattn[mcp]'")
    if block and not torch.cuda.is_available():
        # Every request comes in a thread of its own. Where several of them share a picture's work out, torch's helpers
        # (OpenMP's) outnumber the cores and sleep between any two layers: a picture takes two and a half times as long.
        torch.set_num_threads(1)
    page = build(model)
    page.launch(
        server_name=host,
        server_port=port,
        auth=(user, password) if auth else None,
        share=share,
        inbrowser=open_browser,
        mcp_server=mcp,
        max_file_size=MOST_BYTES,
        quiet=True,
        prevent_thread_lock=True,
        run_history=False,
        footer_links=["api", "settings"],
        theme=THEME,
        css=CSS,
    )
    if share:
        print(f"Everybody who knows it can use {page.share_url}.", flush=True)
    print(f"The page is at {page.local_url} after {time.time() - started:.1f} s. Stop it with Ctrl+C.", flush=True)
    if block:
        page.block_thread()
    return page


def _check_port(host: str, port: int) -> None:
    """Ask for the port before the model is loaded: gradio asks late, and says less about it."""
    if not 1 <= port <= 65535:
        raise ValueError(f"the port is a number from 1 to 65535, not {port}")
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        raise ValueError(
            f"{host}:{port} is taken, or is no address of this machine: choose another --port or --host"
        ) from None
