"""Checks of what a person typed, shared by the page and the command line."""

MAX_PROMPT = 2000
"""Characters. Far more than a model reads, and few enough that refusing a longer prompt costs nothing."""

MAX_SEED = 2**64 - 1
"""The largest seed `torch.Generator.manual_seed` takes."""


def check_prompt(prompt: str) -> None:
    """Raise ValueError unless the prompt is a text that can be handed to a tokenizer (which may still refuse it)."""
    if not isinstance(prompt, str):
        raise ValueError(f"the prompt is a text, not {type(prompt).__name__}")
    if len(prompt) > MAX_PROMPT:
        raise ValueError(f"the prompt has {len(prompt):,} characters, the limit is {MAX_PROMPT:,}: shorten it")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start + 1} of the prompt is half a character: delete it") from None


def parse_seed(text: str | int) -> int:
    """The seed that was typed, an integer in [0, 2**64).

    Raises:
        ValueError: it is anything else.
    """
    try:
        seed = int(str(text))
    except ValueError:
        seed = -1
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"the seed is a whole number from 0 to {MAX_SEED} (2**64 - 1), not {str(text)[:40]!r}")
    return seed
