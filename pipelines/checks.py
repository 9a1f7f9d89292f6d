"""Checks of what a person asks for, shared by the pipelines, the files of prompts, the command and the page.

Each check raises a ValueError whose message is one line.
"""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from unet_xattn.words import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_PROMPT = 10_000
"""Characters of the longest prompt: far more than a model reads, and too few to keep a tokenizer busy."""

MAX_SEED = 2**64 - 1
"""The largest seed `torch.Generator.manual_seed` accepts."""


def listed(value: Any) -> list[Any]:
    """The values of a list or tuple; a single value as a list of one."""
    return list(value) if isinstance(value, list | tuple) else [value]


def check_text(text: Any, name: str = "text") -> None:
    """Raise ValueError unless a tokenizer can read the text; it may be empty. `name` is what the message calls it."""
    if not isinstance(text, str):
        raise ValueError(f"the {name} must be a string, not {type(text).__name__}")
    if len(text) > MAX_PROMPT:
        raise ValueError(f"the {name} has {len(text):,} characters, the limit is {MAX_PROMPT:,}: shorten it")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a surrogate without its other half
        raise ValueError(f"character {error.start + 1} of the {name} is half a character: delete it") from None


def check_prompt(prompt: Any) -> None:
    """Raise ValueError unless a picture can be drawn from the prompt; a tokenizer may still find it too long."""
    check_text(prompt, "prompt")
    if not prompt.strip():
        raise ValueError("the prompt is empty: describe what to draw, for example 'a red circle'")


def check_tokens(ids: Sequence[int], tokenizer: "PreTrainedTokenizerFast", name: str = "prompt") -> None:
    """Raise ValueError where a text has more tokens than the model reads. No text is ever truncated."""
    limit = tokenizer.model_max_length
    if len(ids) > limit:
        raise ValueError(f"the {name} has {len(ids)} tokens, this model reads {limit}: shorten it")


def check_whole(value: Any, name: str, low: int, high: int) -> None:
    """Raise ValueError unless a value is an integer, of Python or numpy, in [low, high]."""
    if not _is_number(value, Integral) or not low <= value <= high:
        raise ValueError(f"the {name} must be a whole number between {low} and {high}, got {shown(value)}")


def check_number(value: Any, name: str, low: float, high: float) -> None:
    """Raise ValueError unless a value is a number, of Python or numpy, in [low, high]."""
    if not _is_number(value, Real) or not low <= value <= high:
        raise ValueError(f"the {name} must be a number between {low} and {high}, got {shown(value)}")


def check_steps(steps: Any) -> None:
    """Raise ValueError unless the number of steps is an integer in [1, 1000]."""
    check_whole(steps, "number of steps", 1, 1000)


def check_guidance(scale: Any, negatives: Sequence[str], guidable: bool) -> None:
    """Raise ValueError unless the guidance scale is in [0, 100] and the model can be guided by it.

    Guidance moves away from the prediction for the negative prompt. Where that is empty, the model has to be
    `guidable`: trained with caption dropout, so that it knows the empty caption.
    """
    check_number(scale, "guidance scale", 0, 100)
    if scale != 1 and not guidable and not all(text.strip() for text in negatives):
        raise ValueError(
            f"guidance {float(scale):g} with an empty negative prompt needs a model trained with caption dropout: "
            "set guidance to 1, give a negative prompt, or train with --caption-dropout 0.1"
        )


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)  # True is an Integral


def check_seed(seed: Any) -> None:
    """Raise ValueError unless the seed is an integer, of Python or numpy, in [0, 2**64)."""
    if not _is_number(seed, Integral) or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"the seed is a whole number from 0 to {MAX_SEED} (2**64 - 1), not {shown(seed)!r}")


def parse_seed(text: str | int) -> int:
    """A seed as a person typed it -> an integer in [0, 2**64).

    Raises:
        ValueError: the text is anything else.
    """
    try:
        seed: Any = int(str(text))
    except ValueError:
        seed = text
    check_seed(seed)
    return seed
