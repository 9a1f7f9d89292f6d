"""Components of our own: a folder each, with its template, its style and its script in files of their own."""

from importlib.resources import files
from typing import Any

import gradio as gr

KINDS = (".html", ".css", ".js")


def sources(package: str) -> tuple[str, str, str]:
    """Template, style and script of a component: its .html, its .css, and its .js files one after another by name."""
    parts = sorted(files(package).iterdir(), key=lambda part: part.name)
    template, style, script = (
        "\n".join(part.read_text("utf-8") for part in parts if part.name.endswith(kind)) for kind in KINDS
    )
    return template, style, script


def component(package: str, value: Any = None, **options: Any) -> gr.HTML:
    """The component of a package, `ui.viewer` for one; `options` are gr.HTML's, or properties its script reads.

    It is a plain `gr.HTML` rather than a subclass because gradio writes a .pyi file beside every component class it
    meets. Templates are static: gradio runs them as code, so what a person typed travels in `value` only.
    """
    template, style, script = sources(package)
    return gr.HTML(
        value, html_template=template, css_template=style, js_on_load=script, apply_default_css=False, **options
    )
