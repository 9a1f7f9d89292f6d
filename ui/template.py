"""The template, style and script of a component, from the files of its package."""

from importlib.resources import files

SUFFIXES = (".html", ".css", ".js")


def sources(package: str) -> tuple[str, str, str]:
    """The .html, .css and .js of a component; files of one kind are joined in the order of their names.

    The script begins with `ui/texts/texts.js`, which writes the texts in the language of the browser.
    """
    parts = sorted(files(package).iterdir(), key=lambda part: part.name)
    template, style, script = (
        "\n".join(part.read_text("utf-8") for part in parts if part.name.endswith(kind)) for kind in SUFFIXES
    )
    return template, style, files("ui.texts").joinpath("texts.js").read_text("utf-8") + "\n" + script
