"""The language of the page: the browser's own, or the one that was chosen on the page and that the browser remembers.

Gradio reads `navigator.language` before it inserts any script of ours. So a script at the beginning of the page puts
the chosen language there, and the errors that components may have to write, once for all of them.
"""

import json
from collections.abc import MutableMapping
from importlib.resources import files
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from ui.texts import TEXTS

ERRORS = [texts for key, texts in TEXTS.items() if key.startswith(("error.", "finding.", "toast."))]
"""The errors, findings and toasts that are known, in both languages."""

_KNOWN = json.dumps(ERRORS, ensure_ascii=False).replace("<", "\\u003c")
_CHOSEN = files("ui").joinpath("language.js").read_text("utf-8")
EARLY = f"<script>\n{_CHOSEN}window.knownErrors = {_KNOWN};\n</script>".encode()

CHANGE = """() => {
  const other = document.documentElement.lang.startsWith("zh") ? "en" : "zh-CN";
  localStorage.setItem("unet-xattn.language", other);
  location.reload();
}"""
"""The script of the switch: everything on the page reads the language once, when it is loaded."""


class Language:
    """ASGI middleware that inserts `EARLY` into the page."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def insert(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [pair for pair in message["headers"] if pair[0].lower() != b"content-length"]
            elif b"<head>" in message.get("body", b""):
                message["body"] = message["body"].replace(b"<head>", b"<head>" + EARLY, 1)
            await send(message)

        page = scope["type"] == "http" and scope["path"] == scope.get("root_path", "") + "/"
        await self.app(scope, receive, insert if page else send)
