"""Components of our own: a folder each, with its template, its style and its script in files of their own."""

from importlib.resources import files
from typing import Any

import gradio as gr


def sources(package: str) -> tuple[str, str, str]:
    """Template and style of a component, from the files in its package that bear its name, and its script.

    A long script may lie in several files, which are read in the order of their names as one.
    """
    name, folder = package.rpartition(".")[2], files(package)
    template, style = (folder.joinpath(f"{name}.{kind}").read_text("utf-8") for kind in ("html", "css"))
    scripts = sorted((file for file in folder.iterdir() if file.name.endswith(".js")), key=lambda file: file.name)
    return template, style, "\n".join(file.read_text("utf-8") for file in scripts)


def component(package: str, value: Any = None, **options: Any) -> gr.HTML:
    """The component of a package, `ui.viewer` for one; `options` are gr.HTML's, or properties its script reads.

    It is a plain `gr.HTML` rather than a subclass because gradio writes a .pyi file beside every component class it
    meets. Templates are static: gradio runs them as code, so what a person typed travels in `value` only.
    """
    template, style, script = sources(package)
    return gr.HTML(
        value, html_template=template, css_template=style, js_on_load=script, apply_default_css=False, **options
    )
