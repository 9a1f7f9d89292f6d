"""The command `unet-xattn`: each subcommand a thin wrapper over one function a notebook can call."""

import sys
from typing import Annotated

import psutil
import typer
from diffusers.utils.logging import disable_progress_bar
from transformers.utils.logging import disable_progress_bar as disable_transformers_progress_bar

from pipelines.runs.signals import StoppedError
from ui.app import launch
from ui.commands import data, draw, measure, train
from ui.commands.common import Model

app = typer.Typer(
    help="See how words become picture: generate, train, evaluate, and ask which word drew what.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for part in (draw, train, measure):
    app.add_typer(part.app)
app.add_typer(data.app, name="data")


@app.command(epilog="Example: unet-xattn ui --port 7861")
def ui(
    model: Model = "shapes",
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 7860,
    auth: Annotated[str | None, typer.Option(help="Ask for this user:password.")] = None,
    share: Annotated[bool, typer.Option("--share", help="Have gradio open a public address that leads here.")] = False,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    mcp: Annotated[bool, typer.Option("--mcp", help="Offer the API to language models too, by MCP.")] = False,
) -> None:
    """Open the page."""
    launch(model, host, port, auth, share, open_browser, mcp, started=psutil.Process().create_time())


def main() -> None:
    """Run the command; what a person got wrong is one line and exit code 1, never a traceback."""
    disable_progress_bar(), disable_transformers_progress_bar()  # of loading a model, which takes no time
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
