"""The models a page can use: those of the package, the one it was opened with, and what was trained here."""

from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from pipelines import TextToImagePipeline
from pipelines.text_to_image import bundled_models

RUNS = Path("runs")
"""Where the page trains, and finds what was trained, below the folder it was started in."""

AT_ONCE = 1 if torch.cuda.is_available() else torch.get_num_threads()
"""How many pictures are drawn at a time, whoever asks: on a CPU each on a core of its own (see `ui.app.launch`)."""

MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": AT_ONCE}
"""Of every event that asks a model."""

LOADED = 3
"""How many models are held in memory; the one not used for longest goes first."""


class Models:
    """Models by name, loaded when they are first asked for. Nobody can name anything but what `names` lists.

    Args:
        first: a bundled name, a folder, a hub id or a pipeline: the one the page opens with. It is loaded at once.
    """

    def __init__(self, first: str | TextToImagePipeline = "shapes"):
        self.first = first if isinstance(first, str) else "this pipeline"
        self._loaded: OrderedDict[str, tuple[float, TextToImagePipeline]] = OrderedDict()
        self._lock = Lock()
        pipe = first if isinstance(first, TextToImagePipeline) else TextToImagePipeline.from_pretrained(first)
        self._given = _ready(pipe)

    def names(self) -> list[str]:
        """The names there are now: the first model, the bundled ones, then the runs, the newest first."""
        runs = sorted(RUNS.glob("*/model_index.json"), key=lambda file: -file.stat().st_mtime)
        return list(dict.fromkeys([self.first, *bundled_models(), *(str(file.parent) for file in runs)]))

    def get(self, name: str) -> TextToImagePipeline:
        """The pipeline of a name; a run that has saved again since is loaded again.

        Raises:
            ValueError: no such model, or it cannot be loaded.
        """
        if name == self.first:
            return self._given
        if name not in self.names():
            raise ValueError(f"there is no model {name!r} here: choose one of {', '.join(self.names())}")
        with self._lock:
            index = Path(name) / "model_index.json"
            saved = index.stat().st_mtime if index.is_file() else 0.0  # a bundled one never changes
            if self._loaded.get(name, (None,))[0] != saved:
                self._loaded[name] = (saved, _ready(TextToImagePipeline.from_pretrained(name)))
            self._loaded.move_to_end(name)
            if len(self._loaded) > LOADED:
                self._loaded.popitem(last=False)
            return self._loaded[name][1]


def _ready(pipe: TextToImagePipeline) -> TextToImagePipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")
