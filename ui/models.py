"""The models of a page: the bundled ones, the one it was opened with, and those trained on this machine."""

from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from cachetools import LRUCache
from transformers import PreTrainedTokenizerFast

from pipelines import TextToImagePipeline
from pipelines.runs.processes import find_device
from pipelines.text_to_image import bundled_models, find_model
from pipelines.training.config import RUNS
from ui.runs import list_runs

AT_ONCE = 1 if torch.accelerator.is_available() else torch.get_num_threads()
"""The number of pictures drawn at the same time, for all visitors. On a CPU each uses one core, see `app.launch`."""

Events = dict[str, Any]
"""Arguments of events that use a model."""

MODEL: Events = {"concurrency_id": "model", "concurrency_limit": AT_ONCE}
"""The settings of every event that uses a model."""

MOST_LOADED = 3
"""The most models in memory, in addition to the first; the least recently used is dropped first."""


class Models:
    """Models by name, each loaded when it is first used. Only the models in `names` can be used.

    Args:
        first: a bundled name, a folder, a hub id or a pipeline: the model that the page opens with. It is loaded at
            once.
        device: the device of all models, see `processes.find_device`; by default the one that Accelerate chooses.
    """

    events = MODEL

    def __init__(self, first: str | TextToImagePipeline, device: str | None = None):
        self.first = first if isinstance(first, str) else "this pipeline"
        self.device = find_device(device)
        self._loaded: LRUCache[str, tuple[float, TextToImagePipeline]] = LRUCache(MOST_LOADED)
        self._lock = Lock()
        pipe = first if isinstance(first, TextToImagePipeline) else TextToImagePipeline.from_pretrained(first)
        self._first = self._ready(pipe)

    def names(self) -> list[str]:
        """The names of all models: the first one, the bundled ones, then the runs, the newest first."""
        return list(dict.fromkeys([self.first, *self.saved()]))

    @staticmethod
    def saved() -> list[str]:
        """The names of the models that a training can begin with: the bundled ones, then the runs, the newest first."""
        runs = sorted(RUNS.glob("*/model_index.json"), key=lambda file: -file.stat().st_mtime)
        return [*bundled_models(), *(str(file.parent) for file in runs)]

    def get(self, name: str) -> TextToImagePipeline:
        """The pipeline of a name. A run that has saved a newer model is loaded again.

        Raises:
            ValueError: the model is not found, or cannot be loaded.
        """
        if name == self.first:
            return self._first
        if name not in self.names():
            raise ValueError(f"model {name!r} not found: choose one of {', '.join(self.names())}")
        with self._lock:
            index = Path(name) / "model_index.json"
            saved = index.stat().st_mtime if index.is_file() else 0.0  # a bundled model never changes
            if self._loaded.get(name, (None,))[0] != saved:
                self._loaded[name] = (saved, self._ready(TextToImagePipeline.from_pretrained(name)))
            return self._loaded[name][1]

    def tokenizers(self, but: str = "") -> dict[str, PreTrainedTokenizerFast]:
        """The tokenizers of the bundled models, except of one."""
        return {name: _bundled_tokenizer(name) for name in bundled_models() if name != but}

    def prompts(self, name: str) -> list[str]:
        """The prompts of the samples of a run; none for other models."""
        runs = (run for run in list_runs(RUNS) if str(run.folder) == name)
        return next((run.prompts for run in runs), [])

    def _ready(self, pipe: TextToImagePipeline) -> TextToImagePipeline:
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(self.device)


@cache
def _bundled_tokenizer(name: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(find_model(name), subfolder="tokenizer")
