"""Components of our own: a folder each, with its template, its style and its script in files of their own."""

from typing import Any

import gradio as gr

from ui.template import sources


def component(package: str, value: Any = None, **options: Any) -> gr.HTML:
    """The component of a package, `ui.viewer` for one; `options` are gr.HTML's, or properties its script reads.

    It is a plain `gr.HTML` rather than a subclass because gradio writes a .pyi file beside every component class it
    meets. Templates are static: gradio runs them as code, so what a person typed travels in `value` only.
    """
    template, style, script = sources(package)
    return gr.HTML(
        value, html_template=template, css_template=style, js_on_load=script, apply_default_css=False, **options
    )
