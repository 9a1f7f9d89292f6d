"""Our own Gradio components: each is a package with its template, style and script in separate files."""

from typing import Any

import gradio as gr

from ui.template import sources


def component(package: str, value: Any = None, **options: Any) -> gr.HTML:
    """The component of a package, for example `ui.viewer`.

    It is a plain `gr.HTML` and not a subclass, because Gradio writes a .pyi file beside every component class. Gradio
    runs templates as code: they must be static, and text that a person typed may travel only in `value`.

    Args:
        options: arguments of `gr.HTML`, or properties that the script reads from `props`.
    """
    template, style, script = sources(package)
    return gr.HTML(
        value, html_template=template, css_template=style, js_on_load=script, apply_default_css=False, **options
    )
