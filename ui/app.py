"""The page: tabs and wiring."""

import socket
import time

import gradio as gr

from pipelines import TextToImagePipeline
from ui.generate_tab import generate_tab
from ui.models import Models
from ui.train_tab import train_tab

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
.html-container:has(.attention-viewer) { padding: 0; }
"""


def build(model: str | TextToImagePipeline = "shapes") -> gr.Blocks:
    """The page of a model: a bundled name, a folder, a hub id or a pipeline. It uses a GPU where there is one."""
    models = Models(model)
    with gr.Blocks(title="unet-xattn", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# Which word drew what")
        with gr.Tab("Generate"):
            generate_tab(page, models.get(models.first))
        with gr.Tab("Train"):
            train_tab(page, models)
    return page.queue(max_size=32)


def launch(
    model: str | TextToImagePipeline = "shapes",
    host: str = "127.0.0.1",
    port: int = 7860,
    started: float | None = None,
    block: bool = True,
) -> gr.Blocks:
    """Open the page and serve it until interrupted.

    Args:
        started: when the command began (seconds since the epoch), to say how long a person waited for the page.
        block: wait here; otherwise return while the page is served (close it with `page.close()`).

    Raises:
        ValueError: the port cannot be had, or there is no such model; before anything is loaded or served.
    """
    started = time.time() if started is None else started
    _check_port(host, port)
    page = build(model)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        max_file_size="1gb",
        prevent_thread_lock=True,
        run_history=False,
        footer_links=["api", "settings"],
        theme=THEME,
        css=CSS,
    )
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
