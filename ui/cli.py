"""The command `unet-xattn`: each subcommand is a thin wrapper around one function that a notebook can call."""

import sys
from typing import Annotated

import typer

from pipelines.runs.signals import StoppedError
from ui import DEFAULT_MODEL
from ui.commands import data, draw, edit, measure, train
from ui.commands.common import AnyModel, Device

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for part in (draw, edit, train, measure):
    app.add_typer(part.app)
app.add_typer(data.app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        from pipelines.runs.machine import package_version

        print(package_version())
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Draw pictures from prompts, train and evaluate models, and see which word drew what."""


@app.command(epilog="Example: unet-xattn ui --port 7861")
def ui(
    model: AnyModel = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 7860,
    auth: Annotated[str | None, typer.Option(help="Require this login, user:password.")] = None,
    share: Annotated[bool, typer.Option("--share", help="Let Gradio open a public address for the page.")] = False,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    mcp: Annotated[bool, typer.Option("--mcp", help="Offer the API to language models too, by MCP.")] = False,
    device: Device = None,
) -> None:
    """Open the page."""
    import psutil

    from ui.app import launch

    launch(model, host, port, auth, share, open_browser, mcp, psutil.Process().create_time(), device=device)


def main() -> None:
    """Run the command. An error that a person can cause is one line and exit code 1, never a traceback."""
    try:
        app()
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.received)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
