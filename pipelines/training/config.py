"""What a training run is told."""

from dataclasses import dataclass

from pipelines.pictures import FITS
from pipelines.scenes.worlds import WORLDS
from pipelines.sources.findings import check_on_bad


@dataclass(frozen=True)
class Saving:
    """When a run saves besides at its validations and its end, and what it keeps."""

    save_every: int = 0  # steps between checkpoints; 0: no more than there are validations
    save_minutes: float = 10.0  # a step that ends so long after the last checkpoint leaves one; 0: none does
    keep: int = 2  # the last checkpoints kept
    milestone: int = 0  # steps between checkpoints that are kept for good; 0: none is

    def __post_init__(self) -> None:
        for name, least in (("save_every", 0), ("save_minutes", 0), ("keep", 1), ("milestone", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")

    def due(self, step: int, seconds: float) -> bool:
        """Whether to save after `step` steps, `seconds` after the last time."""
        by_steps = any(every and step % every == 0 for every in (self.save_every, self.milestone))
        return by_steps or 0 < self.save_minutes * 60 <= seconds

    def is_milestone(self, step: int) -> bool:
        return self.milestone > 0 and step % self.milestone == 0


@dataclass(frozen=True)
class TrainConfig(Saving):
    """What a run is. The same settings, machine and thread count give the same weights."""

    data: str = "shapes"  # "shapes", "emoji", or captioned pictures: what `sources.read_source` takes
    on_bad: str = "fail"  # or "skip", of rows that cannot be used
    streaming: bool = False  # take a hub set's pictures as they come, so many as `limit` says
    limit: int | None = None  # of pictures
    out: str = "runs/first"
    begin_from: str = ""  # a model whose weights and vocabulary the run starts with; from nothing if there is none
    distill: str = ""  # a teacher: what it draws in many steps is learnt in few, beginning from its weights
    few_steps: int = 4  # those
    steps: int = 4_000
    batch_size: int = 64  # of all processes together
    accumulate: int = 1  # parts a batch is worked on in, one after the other: less memory, the same step
    seed: int = 0
    size: int = 64  # side of the pictures, in pixels
    text_encoder: str = ""  # a CLIP or T5 of transformers to read with, as it is; one of our own is trained if none
    vae: str = ""  # a VAE of diffusers whose latents are drawn; pictures themselves if there is none
    buckets: bool = False  # leave wide and upright pictures so, at about as many pixels as a square one has
    fit: str = "crop"  # what becomes of a picture of another shape: "crop" to its middle, or "pad" with white
    flip: bool = False  # show half of the pictures as in a mirror
    learning_rate: float = None  # type: ignore[assignment]  # its highest; unless given, what `_usual_rate` says
    warmup: int = 200  # steps of rising learning rate; it falls over the last third
    weight_decay: float = 0.01
    # Share of captions left out, without which there is nothing to guide away from; unless given, `_usual_dropout`'s.
    caption_dropout: float = None  # type: ignore[assignment]
    mask_weight: float = 0.3  # weight of the token loss where the data has masks; 0 turns it off
    text_weight: float = 0.1  # weight of writing the translation from the memory where the data has one
    ema_sigma: float = 0.1  # relative width of the averaging window
    every: int = 1000  # steps between validations, sample pictures and checkpoints

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", self._usual_rate())
        if self.caption_dropout is None:
            object.__setattr__(self, "caption_dropout", self._usual_dropout())
        leasts = {"steps": 1, "batch_size": 2, "accumulate": 1, "seed": 0, "size": 16, "warmup": 0, "every": 1}
        leasts["few_steps"] = 1
        for name, least in leasts.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate must be at most the batch size, {self.batch_size}, got {self.accumulate}")
        if self.seed >= 2**31:
            raise ValueError(f"seed must be below 2³¹, got {self.seed}: seeds from there on are kept for validation")
        if self.fit not in FITS:
            raise ValueError(f"fit must be {' or '.join(FITS)}, got {self.fit!r}")
        check_on_bad(self.on_bad)
        if self.distill and self.begin_from:
            raise ValueError(f"--distill begins from {self.distill} itself: leave out --from")
        if self.distill and any(getattr(self, n) != getattr(TrainConfig, n) for n in ("mask_weight", "text_weight")):
            raise ValueError(
                "a student learns from pictures of its own, whose masks nobody knows, and reads as its teacher does: "
                "leave mask_weight and text_weight as they are"
            )
        for name, low, high in (
            ("learning_rate", 1e-9, 1.0),
            ("weight_decay", 0.0, 1.0),
            ("caption_dropout", 0.0, 1.0),
            ("mask_weight", 0.0, 100.0),
            ("text_weight", 0.0, 100.0),
            ("ema_sigma", 0.001, 0.28),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be between {low:g} and {high:g}, got {getattr(self, name)}")

    def _usual_rate(self) -> float:
        """The gentler the more is known at the beginning: a student's is that of the bundled `shapes-fast`."""
        return 5e-4 if self.distill else 1e-3 if self.begin_from else 4e-3

    def _usual_dropout(self) -> float:
        """None where pictures are drawn without guidance: scenes, obeyed soonest so, and whatever a student draws."""
        return 0.0 if self.data in WORLDS or self.distill else 0.1


@dataclass(frozen=True)
class TextConfig(Saving):
    """What a run is. The same settings, machine and thread count give the same weights."""

    pairs: str = "pairs.tsv"  # a file, see `read_pairs`
    out: str = "runs/text"
    steps: int = 4000  # at most
    batch_size: int = 64  # of all processes together
    seed: int = 0
    width: int = 192
    layers: int = 3  # of the encoder, and again of the decoder
    dropout: float = 0.1
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.01
    ema_sigma: float = 0.1
    every: int = 250  # steps between validations
    patience: int = 6  # validations without a better loss before it stops
    skip_bad: bool = False  # leave bad lines out instead of refusing the file

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("steps", 1), ("batch_size", 2), ("seed", 0), ("layers", 1), ("every", 1), ("patience", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
