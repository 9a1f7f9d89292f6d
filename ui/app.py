"""The page: its tabs, and the events between them."""

import socket
import time
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

import gradio as gr
import torch
from diffusers import DiffusionPipeline
from starlette.middleware import Middleware

from pipelines.any_pipeline import is_ours
from pipelines.training.config import RUNS
from ui import DEFAULT_MODEL
from ui.any_model import OneModel
from ui.any_page import any_page
from ui.endpoint import offer
from ui.generate_tab import generate_tab
from ui.inspect_tab import inspect_tab
from ui.kept import Kept
from ui.labels import I18N
from ui.language import CHANGE, Language
from ui.models import AT_ONCE, Models
from ui.picture_tab import picture_tab, taken_over
from ui.runs import find_run
from ui.template import page_script
from ui.train_tab import train_tab
from ui.training import model_of
from ui.translate_tab import translate_tab

# Grey with blue controls, so that all other colours belong to pictures and maps. System fonts, so that nothing is
# fetched. The shades keep text at a contrast of 4.5 in light and dark mode (WCAG AA); the defaults do not.
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


MOST_UPLOAD_BYTES = 2**30
"""The limit for an uploaded file, for example a zip of pictures to train on."""


def build(model: str | DiffusionPipeline = DEFAULT_MODEL, device: str | None = None) -> gr.Blocks:
    """The page for a model: a bundled name, a folder, a hub id or a pipeline; see `Models` and `OneModel`."""
    if not is_ours(model):
        return any_page(OneModel(model, device))
    models, kept = Models(model, device), Kept()

    def list_models() -> list[str]:
        """List the models that can be named in other calls.

        Returns:
            names: the model that the page opened with, the bundled ones, then the runs that have saved a model.
        """
        return models.names()

    def list_choices() -> gr.Dropdown:
        return gr.Dropdown(models.names())

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

    def to_translate(event: gr.EventData) -> tuple[str, gr.Tabs]:
        return str(event._data["prompt"]), gr.Tabs(selected="translate")

    def to_follow(event: gr.EventData) -> tuple[str, str, str, gr.Tabs]:
        return str(event._data["prompt"]), "picture", str(event._data["seed"]), gr.Tabs(selected="inspect")

    with gr.Blocks(title="unet-xattn", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        with gr.Row(elem_classes="head", equal_height=True):
            gr.Markdown(I18N("page.title"), min_width=0)
            gr.Markdown(I18N("page.model"), elem_classes="of-model", min_width=0)
            model_name = gr.Dropdown(
                models.names(),
                value=models.first,
                label=I18N("page.model"),
                scale=0,
                min_width=110,
                container=False,
                elem_classes="model",
            )
            other_language = gr.Button(I18N("page.language"), size="sm", scale=0, min_width=60)
        with gr.Tabs() as tabs:
            with gr.Tab(I18N("page.generate"), id="generate"):
                generating = generate_tab(page, models, kept, model_name)
            with gr.Tab(I18N("page.picture"), id="picture"):
                attributing = picture_tab(models, kept, model_name)
            with gr.Tab(I18N("page.train")):
                training = train_tab(page, models)
            with gr.Tab(I18N("page.translate"), id="translate"):
                translating = translate_tab(models, model_name)
            with gr.Tab(I18N("page.inspect"), id="inspect"):
                inspecting = inspect_tab(models, model_name)
        other_language.click(None, js=CHANGE, api_visibility="private")
        # Runs appear while the page is open.
        model_name.focus(
            list_choices, outputs=model_name, queue=False, show_progress="hidden", api_visibility="private"
        )
        private: dict[str, Any] = {"api_visibility": "private"}
        prompt, viewer = generating.prompt, generating.viewer
        opened = training.open.click(open_run, training.run, [model_name, tabs, prompt], **private)
        generating.draw_after(opened, other_model=True)
        used = translating.use.click(to_prompt, translating.translation, [prompt, tabs], **private)
        generating.draw_after(used)
        translating.translate_after(viewer.translate(to_translate, outputs=[translating.text, tabs], **private))
        followed = [inspecting.prompt, inspecting.reader, inspecting.seed, tabs]
        inspecting.follow_after(viewer.follow(to_follow, outputs=followed, **private))
        attributed = [attributing.picture, attributing.caption, tabs]
        attributing.read_after(viewer.attribute(taken_over(kept), outputs=attributed, **private))
        offer(list_models, "models")
    return page.queue(max_size=32)


def launch(
    model: str | DiffusionPipeline = DEFAULT_MODEL,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: str | None = None,
    share: bool = False,
    open_browser: bool = False,
    mcp: bool = False,
    started: float | None = None,
    block: bool = True,
    device: str | None = None,
) -> gr.Blocks:
    """Open the page and serve it until interrupted.

    Args:
        model: a bundled name, a folder, a hub id or a pipeline.
        auth: "user:password", which every visitor must enter; by default there is no login.
        share: let Gradio open a public address for the page.
        open_browser: open the page in this machine's browser.
        mcp: offer the API to language models too (Model Context Protocol), below /gradio_api/mcp.
        started: when the command began (seconds since the epoch), for the printed start-up time.
        block: wait until interrupted; otherwise return while the page is served (close it with `page.close()`).
        device: the device of the models, see `Models`.

    Raises:
        ValueError: the port is not free, an option is malformed, or the model does not exist or cannot be recorded;
            raised before anything is served.
    """
    started = time.time() if started is None else started
    _check_port(host, port)
    user, colon, password = (auth or "").partition(":")
    if auth is not None and not (user and colon and password):
        raise ValueError("--auth must be user:password, for example --auth ada:enigma")
    if mcp and find_spec("mcp") is None:
        raise ValueError("--mcp needs another package: pip install 'unet-xattn[mcp]'")
    if block and AT_ONCE > 1 and is_ours(model):
        # Every request runs in its own thread. If each uses several OpenMP threads, these outnumber the cores and sleep
        # between layers: a picture takes two and a half times as long.
        torch.set_num_threads(1)
    page = build(model, device)
    page.launch(
        server_name=host,
        server_port=port,
        auth=(user, password) if auth else None,
        share=share,
        inbrowser=open_browser,
        mcp_server=mcp,
        max_file_size=MOST_UPLOAD_BYTES,
        quiet=True,
        show_error=True,  # also what is no error of ours: a library ran out of memory, a disk is full
        prevent_thread_lock=True,
        run_history=False,
        footer_links=["api", "settings"],
        i18n=I18N,
        app_kwargs={"middleware": [Middleware(Language)]},
        theme=THEME,
        css=files("ui").joinpath("page.css").read_text("utf-8"),
        js=page_script(),
    )
    if share:
        print(f"Anyone with this address can use the page: {page.share_url}", flush=True)
    print(
        f"The page is at {page.local_url} (started in {time.time() - started:.1f} s). Stop it with Ctrl+C.", flush=True
    )
    if block:
        page.block_thread()
    return page


def _check_port(host: str, port: int) -> None:
    """Check the port before the model is loaded: Gradio checks late, and its message says less."""
    if not 1 <= port <= 65535:
        raise ValueError(f"the port must be a number from 1 to 65535, got {port}")
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        raise ValueError(
            f"{host}:{port} is in use, or is not an address of this machine: choose another --port or --host"
        ) from None
