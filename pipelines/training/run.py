"""A training run around its loop: the folder it trains in, what it resumes from, and when it saves and stops."""

import signal
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

from accelerate import Accelerator
from transformers import PreTrainedTokenizerFast

from pipelines.runs.failures import explained
from pipelines.runs.folder import CHECKPOINTS, run_lock, unused
from pipelines.runs.processes import any_process, this_process
from pipelines.runs.resume import Resumed, check_unchanged, resume_run
from pipelines.runs.signals import StoppedError, StopSignals
from pipelines.training.config import TextConfig, TrainConfig
from pipelines.training.state import TrainState
from pipelines.training.vocabulary import Kept, kept_in, learn_words, tokenizer_files

Config = TypeVar("Config", TrainConfig, TextConfig)


class OpenRun(Generic[Config]):
    """A run that is being trained.

    `config` has its settings. `checkpoint` is what it resumes from, None in a new run; `counters` is what that had
    counted, and `step` its step: {} and 0 in a new run.
    """

    def __init__(self, config: Config, stop: StopSignals, resumed: Resumed[Config] | None, allow_changes: bool):
        self.config: Config = resumed.config if resumed else config
        self.out = Path(self.config.out)
        self.counters: dict[str, Any] = resumed.state if resumed else {}
        self.step: int = self.counters.get("step", 0)
        self.checkpoint: Path | None = resumed.checkpoint if resumed else None
        self.circumstances: dict[str, Any] = {}
        self._beside: dict[str, bytes] = {}
        self._messages = resumed.messages if resumed else []
        self._changed = set(resumed.changed) if resumed else set()
        self._stop, self._allow_changes = stop, allow_changes

    def begin(self, accelerator: Accelerator, data: str) -> None:
        """Record the processes of the run and a fingerprint of its data, see `check`."""
        self.accelerator = accelerator
        self.say(self._messages)
        self.check(data=data, processes=accelerator.num_processes)

    def check(self, unless: Collection[str] = (), **now: Any) -> None:
        """Record circumstances of the run; if it resumes, print which of them have changed since its checkpoint.

        Args:
            unless: settings and circumstances that these depend on. If one has changed, they are not compared.

        Raises:
            ValueError: something has changed, and changes are not allowed.
        """
        self.circumstances |= now
        if self.checkpoint:
            compared = {} if self.has_changed(*unless) else now
            self.say(check_unchanged(self.counters, compared, self._allow_changes))
            self._changed |= {name for name, new in now.items() if self.counters.get(name, new) != new}

    def has_changed(self, *names: str) -> bool:
        """Whether one of these settings and circumstances is not as in the checkpoint that the run resumes from."""
        return not self._changed.isdisjoint(names)

    def say(self, lines: Iterable[str]) -> None:
        """Print lines once, not in every process."""
        for line in lines:
            self.accelerator.print(line)

    def kept(self) -> Kept | None:
        """What the weights of the run decide about its text encoder; None in a new run.

        Raises:
            ValueError: an older version saved the run, and its tokenizer is not found.
        """
        if self.checkpoint is None:
            return None
        kept = kept_in(self.checkpoint, self.out)
        self.say(kept.lines)
        return kept

    def keep(self, tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> None:
        """Keep a tokenizer in all checkpoints, with the words of `texts`, the new ones of which are printed."""
        self.say(learn_words(tokenizer, texts))
        self._beside = tokenizer_files(tokenizer)

    def restore(self, state: TrainState) -> None:
        """Load the checkpoint that the run resumes from, if any. The minutes to the next checkpoint count from here."""
        if self.checkpoint:
            state.load(self.checkpoint)
        self._saved = time.monotonic()

    def is_stopping(self, done: int) -> bool:
        """Whether any process was asked to stop, and steps remain after `done`; every process must call it."""
        return done < self.config.steps and any_process(self.accelerator, self._stop.received is not None)

    def is_save_due(self, done: int) -> bool:
        """Whether the settings ask for a checkpoint after `done` steps; every process must call it."""
        return any_process(self.accelerator, self.config.due(done, time.monotonic() - self._saved))

    def save(self, state: TrainState, done: int, **counters: float) -> None:
        """Save a checkpoint, on the main process; every process must call it."""
        if self.accelerator.is_main_process:
            content = {"step": done, **counters, "config": asdict(self.config), **self.circumstances}
            state.save(self.out / CHECKPOINTS, content, self.config.keep, self.config.is_milestone(done), self._beside)
        self._saved = time.monotonic()

    def stopped(self, done: int) -> StoppedError:
        """The error that ends a run which was asked to stop."""
        return StoppedError(self._stop.received or signal.SIGTERM, done, self.config.steps)


@contextmanager
def open_run(
    config: Config,
    fixed: tuple[str, ...],
    less_memory: str,
    resume: bool = False,
    changes: Mapping[str, Any] | None = None,
    allow_changes: bool = False,
) -> Iterator[OpenRun[Config]]:
    """Open the run in `config.out`, which nobody else can train until the end of the block.

    Args:
        fixed: settings that cannot change on resume.
        less_memory: which options to lower where memory runs out.
        resume, changes, allow_changes: those of `train.train`, as are the errors.
    """
    out = Path(config.out)
    if not resume and (changes or allow_changes):
        raise ValueError("only a resumed run can change its settings: add --resume")
    if not resume and not unused(out):
        raise ValueError(f"{out} is not empty: choose another --out, or --resume the run in it")
    lock = run_lock(out) if this_process().is_main_process else nullcontext()
    with lock, StopSignals() as stop, explained(out, less_memory):
        resumed = resume_run(type(config), out, changes, fixed) if resume else None
        yield OpenRun(config, stop, resumed, allow_changes)
