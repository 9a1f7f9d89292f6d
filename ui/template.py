"""The template, style and script of a component, from the files of its package; and the script of the whole page."""

from importlib.resources import files

SUFFIXES = (".html", ".css", ".js")

ERRORS = files("ui.texts").joinpath("errors.js").read_text("utf-8")
"""The script that says errors in the language of the page."""


def sources(package: str) -> tuple[str, str, str]:
    """The .html, .css and .js of a component; files of one kind are joined in the order of their names.

    The script begins with `ui/texts/errors.js` and `texts.js`, which write the texts in the language of the browser.
    """
    parts = sorted(files(package).iterdir(), key=lambda part: part.name)
    template, style, script = (
        "\n".join(part.read_text("utf-8") for part in parts if part.name.endswith(kind)) for kind in SUFFIXES
    )
    texts = files("ui.texts").joinpath("texts.js").read_text("utf-8")
    return template, style, f"{ERRORS}\n{texts}\n{script}"


def page_script() -> str:
    """The function that Gradio calls when the page is open: `page.js`, which can say errors like the components."""
    return f"() => {{\n{ERRORS}\n{files('ui').joinpath('page.js').read_text('utf-8')}}}"
