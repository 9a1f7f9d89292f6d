"""The latest generated pictures with their traces, kept for requests of finer maps and files by key."""

import base64
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any

from cachetools import LRUCache
from PIL import Image
from torch import Tensor

from pipelines.tracing.masks import mask_entries
from pipelines.tracing.overlay import drawn
from ui.export import DOWNLOADS, download, stem
from ui.viewer import all_heads, view
from unet_xattn import AttentionTrace

KEPT_BYTES = 2**29
"""The memory that all kept traces together may take; the least recently used are dropped first."""


@dataclass(frozen=True)
class Drawing:
    """A trace; for each of its pictures a frame per step (data URLs), and the settings that generate it.

    before: what edited pictures were before the edits, (B, h, w, 3) uint8, with their prompt.
    """

    attention: AttentionTrace
    frames: list[list[str]]
    settings: Sequence[Mapping[str, Any]]
    before: tuple[str, Tensor] | None = None

    @property
    def bytes(self) -> int:
        """The approximate size in memory."""
        keep = self.attention.keep
        frames = sum(len(frame) for frames in self.frames for frame in frames)
        return self.attention.recording.bytes(heads="head" in keep, steps="step" in keep) + frames


class Kept:
    """Drawings by keys that cannot be guessed, so that nobody can see the drawings of others."""

    def __init__(self, budget: int = KEPT_BYTES):
        # One drawing may be larger than the budget: then it is the only one.
        self._drawings: LRUCache[str, Drawing] = LRUCache(budget, getsizeof=lambda drawing: min(drawing.bytes, budget))
        self._running: dict[str, Event] = {}
        self._lock = Lock()

    @contextmanager
    def running(self) -> Iterator[tuple[str, Event]]:
        """The ticket of a generation, and the event that is set when the one who holds the ticket wants it to stop."""
        ticket, stopped = secrets.token_urlsafe(18), Event()
        self._running[ticket] = stopped
        try:
            yield ticket, stopped
        finally:
            del self._running[ticket]

    def add(self, drawing: Drawing) -> str:
        """Keep a drawing and return its key."""
        key = secrets.token_urlsafe(18)
        with self._lock:
            self._drawings[key] = drawing
        return key

    def get(self, asked: Any) -> tuple[Drawing, int]:
        """The drawing and the index of the picture that a browser asks for with {"key": text, "image": number}.

        Raises:
            ValueError: the drawing is not kept (any more), or the request is malformed.
        """
        key, image = (asked.get("key"), asked.get("image")) if isinstance(asked, dict) else (None, None)
        with self._lock:
            drawing = self._drawings.get(key) if isinstance(key, str) else None
        if drawing is None:
            raise ValueError("the server no longer keeps this picture: generate it again")
        if not isinstance(image, int) or not 0 <= image < len(drawing.settings):
            raise ValueError(f"image must be a number from 0 to {len(drawing.settings) - 1}, got {str(image)[:40]!r}")
        return drawing, image

    def picture(self, asked: Any) -> Image.Image:
        """The picture that a browser asks for, see `get`."""
        drawing, image = self.get(asked)
        return drawn(drawing.attention, image)

    def functions(self) -> list[Callable[[Any], dict[str, Any]]]:
        """The functions that the viewer calls on the server; they answer errors as {"error": a line}."""

        def answering(answer: Callable[[Drawing, int, Any], dict[str, Any]], name: str) -> Callable:
            def ask(asked: Any) -> dict[str, Any]:
                try:
                    return answer(*self.get(asked), asked)
                except ValueError as error:
                    return {"error": str(error)}

            ask.__name__ = name  # the name by which the browser calls it
            return ask

        def finer(drawing: Drawing, image: int, asked: Any) -> dict[str, Any]:
            return view(drawing.attention, image, str(asked.get("name")))

        def frames(drawing: Drawing, image: int, asked: Any) -> dict[str, Any]:
            return {"frames": drawing.frames[image], "view": view(drawing.attention, image, "mean||")}

        def save(drawing: Drawing, image: int, asked: Any) -> dict[str, Any]:
            kind, settings = str(asked.get("kind")), drawing.settings[image]
            attention, word = drawing.attention, asked.get("word")
            content = download(attention, image, kind, settings, drawing.frames[image], word)
            ending, media = DOWNLOADS[kind]
            of_word = "-" + re.sub(r"\W+", "-", attention.words_of(image)[word].text)[:40] if kind == "mask" else ""
            name = stem(attention.prompts[image], int(settings.get("seed", 0))) + of_word + ending
            return {"name": name, "type": media, "content": base64.b64encode(content).decode()}

        def heads(drawing: Drawing, image: int, asked: Any) -> dict[str, Any]:
            return {"layers": all_heads(drawing.attention, image, asked.get("tokens"))}

        def masks(drawing: Drawing, image: int, asked: Any) -> dict[str, Any]:
            return {"masks": mask_entries(drawing.attention, image)}

        def stop(asked: Any) -> dict[str, Any]:
            ticket = asked.get("ticket") if isinstance(asked, dict) else None
            stopped = self._running.get(ticket) if isinstance(ticket, str) else None
            if stopped is None:  # it has ended meanwhile
                return {"error": "this generation has ended already"}
            stopped.set()
            return {}

        return [
            answering(finer, "view"),
            answering(frames, "frames"),
            answering(save, "save"),
            answering(heads, "heads"),
            answering(masks, "masks"),
            stop,
        ]
