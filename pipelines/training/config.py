"""The settings of a training run, and their options on the command line.

Nothing here imports torch or numpy, so that `--help` answers at once.
"""

from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.runs.resume import flag_of
from pipelines.scenes import WORLD_NAMES
from pipelines.sources.findings import check_on_bad

RUNS = Path("runs")
"""The folder of the runs, below the folder that the page or the command is started in."""

FITS = ("crop", "pad")
"""How a picture is brought to another shape, see `pictures.load_picture`."""

SOURCES = "a folder, a .zip or .tar of one, WebDataset shards, or a dataset's name on the hub"


def option(default: Any = MISSING, **shown: Any) -> Any:
    """A setting with an option on the command line. Other settings can only be changed from Python.

    Args:
        shown: arguments of `typer.Option`, and "flag" where the option is not named after the setting.
    """
    return field(default=default, kw_only=default is MISSING, metadata=shown)


@dataclass(frozen=True)
class Saving:
    """When a run saves checkpoints, in addition to those at its validations and its end, and which ones it keeps."""

    save_every: int = option(0, help="Steps between checkpoints, in addition to those of --every; 0: none.")
    save_minutes: float = option(10.0, help="Save when the last checkpoint is this many minutes old; 0: never.")
    keep: int = option(2, help="How many of the last checkpoints to keep.")
    milestone: int = option(0, help="Steps between checkpoints that are kept for good; 0: none.")

    def __post_init__(self) -> None:
        self._check_least(save_every=0, save_minutes=0, keep=1, milestone=0)

    def due(self, step: int, seconds: float) -> bool:
        """Whether to save after `step` steps, `seconds` after the last checkpoint."""
        by_steps = any(every and step % every == 0 for every in (self.save_every, self.milestone))
        return by_steps or 0 < self.save_minutes * 60 <= seconds

    def is_milestone(self, step: int) -> bool:
        return self.milestone > 0 and step % self.milestone == 0

    def _flag(self, name: str) -> str:
        return flag_of(self.__dataclass_fields__[name])

    def _check_least(self, **leasts: float) -> None:
        for name, least in leasts.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{self._flag(name)} must be {least} or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class TrainConfig(Saving):
    """The settings of a run. The same settings, machine and number of threads give the same weights."""

    data: str = option("shapes", help=f"'shapes', 'emoji', 'everyday', or captioned pictures: {SOURCES}.")
    out: str = option(
        str(RUNS / "first"), help="Folder of the run: model, checkpoints, samples and logs.", metavar="<path>"
    )
    begin_from: str = option(
        "", flag="--from", help="Initialise from the weights and vocabulary of this model, not at random."
    )
    distill: str = option("", help="Distil this model into one that draws in few steps and without guidance.")
    few_steps: int = option(4, help="Sampling steps of the distilled model.")
    steps: int = option(4_000, help="Training steps.")
    learning_rate: float = option(
        None,  # `_usual_rate`
        help="Peak learning rate; it rises first, and falls to 0 over the last third.",
        show_default="0.004, with --from 0.001, with --distill 0.0005",
    )
    batch_size: int = option(64, help="Pictures per step, over all processes.")
    seed: int = option(0, help="Random seed of the run.")
    size: int = option(64, help="Side of the pictures in pixels.")
    text_encoder: str = option("", help="Read prompts with this CLIP or T5, which stays frozen: a folder or a hub id.")
    vae: str = option("", help="Draw latents of this VAE of diffusers, which stays frozen: a folder or a hub id.")
    buckets: bool = option(False, help="Keep the shapes of wide and upright pictures, at about size² pixels.")
    fit: str = option("crop", help="Bring other shapes to size: crop (keep the middle) or pad (with white).")
    flip: bool = option(False, help="Mirror half of the pictures.")
    on_bad: str = option("fail", help="With pictures that cannot be used: fail, or skip them.")
    streaming: bool = option(False, help="Read a dataset of the hub as it arrives, up to --limit pictures.")
    limit: int | None = option(None, help="Use only this many pictures, the first ones.")
    caption_dropout: float = option(
        None,  # `_usual_dropout`
        help="Share of captions that are left empty in training; guidance needs them.",
        show_default="0.1, for scenes and with --distill 0",
    )
    mask_weight: float = option(0.3, help="Weight of the loss on masks, if the data has masks; 0 turns it off.")
    every: int = option(1000, help="Steps between validations, samples and checkpoints.")
    accumulate: int = option(1, help="Split each batch into this many parts: the same step in less memory.")
    warmup: int = 200  # steps
    weight_decay: float = 0.01
    text_weight: float = 0.1  # of the loss on the translation, if the data has translations
    ema_sigma: float = 0.1  # width of the averaging window, relative to the length of the run
    time_shift: float | None = None  # of the sampled times; None: that of the pictures' size, `flow.time_shift`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", self._usual_rate())
        if self.caption_dropout is None:
            object.__setattr__(self, "caption_dropout", self._usual_dropout())
        self._check_least(steps=1, batch_size=2, accumulate=1, seed=0, size=16, warmup=0, every=1, few_steps=1)
        if self.accumulate > self.batch_size:
            raise ValueError(f"--accumulate must be at most --batch-size, {self.batch_size}, got {self.accumulate}")
        if self.seed >= 2**31:
            raise ValueError(f"--seed must be below 2³¹, got {self.seed}: larger seeds are kept for validation")
        if self.fit not in FITS:
            raise ValueError(f"--fit must be {' or '.join(FITS)}, got {self.fit!r}")
        check_on_bad(self.on_bad)
        if self.distill and self.begin_from:
            raise ValueError(f"--distill already initialises from {self.distill}: leave out --from")
        if self.distill and any(getattr(self, n) != getattr(TrainConfig, n) for n in ("mask_weight", "text_weight")):
            raise ValueError(
                "--distill trains on the student's own pictures, which have no masks, and keeps the text encoder: "
                "leave --mask-weight and text_weight at their defaults"
            )
        for name, low, high in (
            ("learning_rate", 1e-9, 1.0),
            ("weight_decay", 0.0, 1.0),
            ("caption_dropout", 0.0, 1.0),
            ("mask_weight", 0.0, 100.0),
            ("text_weight", 0.0, 100.0),
            ("ema_sigma", 0.001, 0.28),
            ("time_shift", 0.01, 100.0),
        ):
            if getattr(self, name) is not None and not low <= getattr(self, name) <= high:
                raise ValueError(f"{self._flag(name)} must be between {low:g} and {high:g}, got {getattr(self, name)}")

    def _usual_rate(self) -> float:
        """Lower where the run starts from trained weights. The student's is that of the bundled `shapes-fast`."""
        return 5e-4 if self.distill else 1e-3 if self.begin_from else 4e-3

    def _usual_dropout(self) -> float:
        """Zero for models that draw without guidance: those of scenes, which learn fastest so, and students."""
        return 0.0 if self.data in WORLD_NAMES or self.distill else 0.1


@dataclass(frozen=True)
class TextConfig(Saving):
    """The settings of a run on pairs of sentences. The same settings, machine and threads give the same weights."""

    pairs: str = option(help="A .tsv with two columns, or a .jsonl of source and target; UTF-8.", metavar="<path>")
    out: str = option(str(RUNS / "text"), help="Folder of the run: model and checkpoints.", metavar="<path>")
    steps: int = option(4000, help="Training steps, at most.")
    batch_size: int = option(64, help="Pairs per step, over all processes.")
    seed: int = option(0, help="Random seed of the run.")
    every: int = option(250, help="Steps between validations.")
    patience: int = option(6, help="Stop after this many validations without a lower loss.")
    skip_bad: bool = option(False, help="Leave out lines that cannot be used instead of refusing the file.")
    width: int = 192
    layers: int = 3  # of the encoder, and as many of the decoder
    dropout: float = 0.1
    learning_rate: float = 1e-3  # its peak
    warmup: int = 200  # steps
    weight_decay: float = 0.01
    ema_sigma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_least(steps=1, batch_size=2, seed=0, layers=1, every=1, patience=1)
