"""The template, style and script of a component, read from the files of its package."""

from importlib.resources import files

KINDS = (".html", ".css", ".js")


def sources(package: str) -> tuple[str, str, str]:
    """Template, style and script of a component: its .html, its .css, and its .js files one after another by name."""
    parts = sorted(files(package).iterdir(), key=lambda part: part.name)
    template, style, script = (
        "\n".join(part.read_text("utf-8") for part in parts if part.name.endswith(kind)) for kind in KINDS
    )
    return template, style, script
