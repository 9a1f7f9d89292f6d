"""What was drawn lately, kept so that its finer maps and its files can be asked for, by whoever knows its key."""

import base64
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from ui.export import DOWNLOADS, download, stem
from ui.viewer import view
from unet_xattn import AttentionTrace

BUDGET = 2**29
"""Bytes all traces together may take; the oldest go first."""


@dataclass(frozen=True)
class Drawing:
    """A trace, of each of its pictures how it looked at each step (data URLs), and what it was made from."""

    attention: AttentionTrace
    frames: list[list[str]]
    settings: list[Mapping[str, Any]]

    @property
    def bytes(self) -> int:
        """About what it takes in memory."""
        keep = self.attention.keep
        frames = sum(len(frame) for frames in self.frames for frame in frames)
        return self.attention.recording.bytes(heads="head" in keep, steps="step" in keep) + frames


class Kept:
    """Drawings by keys that cannot be guessed: nobody sees another's."""

    def __init__(self, budget: int = BUDGET):
        self.budget = budget
        self._drawings: OrderedDict[str, Drawing] = OrderedDict()
        self._lock = Lock()

    def add(self, drawing: Drawing) -> str:
        """Keep a drawing, let the oldest go where there are too many, and return its key."""
        key = secrets.token_urlsafe(18)
        with self._lock:
            self._drawings[key] = drawing
            while sum(d.bytes for d in self._drawings.values()) > self.budget and len(self._drawings) > 1:
                self._drawings.popitem(last=False)
        return key

    def get(self, asked: Any) -> tuple[Drawing, int]:
        """The drawing and the picture that a browser asks for, {"key": text, "image": number}.

        Raises:
            ValueError: they are not there (any more), or make no sense.
        """
        key, image = (asked.get("key"), asked.get("image")) if isinstance(asked, dict) else (None, None)
        with self._lock:
            drawing = self._drawings.get(key) if isinstance(key, str) else None
            if key is None or drawing is None:
                raise ValueError("this picture is not kept any more: draw it again")
            self._drawings.move_to_end(key)
        if not isinstance(image, int) or not 0 <= image < len(drawing.settings):
            raise ValueError(f"the drawing has {len(drawing.settings)} pictures, counted from 0")
        return drawing, image

    def functions(self) -> list[Callable[[Any], dict[str, Any]]]:
        """What the viewer asks of the server; what is wrong is answered as {"error": a line}."""

        def answering(answer: Callable[[Drawing, int, Any], dict[str, Any]], name: str) -> Callable:
            def ask(asked: Any) -> dict[str, Any]:
                try:
                    return answer(*self.get(asked), asked)
                except ValueError as error:
                    return {"error": str(error)}

            ask.__name__ = name  # the browser calls it by this name
            return ask

        def finer(drawing: Drawing, image: int, asked: Any) -> dict[str, Any]:
            return view(drawing.attention, image, str(asked.get("name")))

        def frames(drawing: Drawing, image: int, asked: Any) -> dict[str, Any]:
            return {"frames": drawing.frames[image], "view": view(drawing.attention, image, "mean||")}

        def save(drawing: Drawing, image: int, asked: Any) -> dict[str, Any]:
            kind, settings = str(asked.get("kind")), drawing.settings[image]
            content = download(drawing.attention, image, kind, settings, drawing.frames[image])
            ending, media = DOWNLOADS[kind]
            name = stem(drawing.attention.prompts[image], int(settings.get("seed", 0))) + ending
            return {"name": name, "type": media, "content": base64.b64encode(content).decode()}

        return [answering(finer, "view"), answering(frames, "frames"), answering(save, "save")]
