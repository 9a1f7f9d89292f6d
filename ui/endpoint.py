"""Functions as endpoints of the page's API: whatever a client sends, an error is one line of ours."""

import re
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from inspect import Parameter, cleandoc, signature
from typing import Annotated, Any, get_args, get_type_hints

import gradio as gr
from gradio.context import Context

from unet_xattn.words import shown

KINDS = {str: "a text", int: "a whole number", float: "a number"}

Seed = Annotated[str, int]
"""A text, because numbers in a browser are exact only up to 2**53; clients that have such numbers may send one."""


def offer(function: Callable[..., Any], name: str, **options: Any) -> None:
    """Offer a function as an endpoint of the page's API, for a client that has only `view_api`.

    The docstring's sections "Args" and "Returns" describe each parameter and name the answer.

    Args:
        options: arguments of `gr.api`.
    """
    gr.api(endpoint(function), api_name=name, **options)
    root = Context.root_block
    assert root is not None
    made = list(root.fns.values())[-1]
    about = described(function)
    for part, (parameter, line) in zip([*made.inputs, *made.outputs], about, strict=True):
        # Gradio shows an input's additional description, and an output's description.
        part.label = parameter
        part._api_info = part._api_info | {"additional_description": line, "description": line}


def described(function: Callable[..., Any]) -> list[tuple[str, str]]:
    """The name and the description of each parameter of a function and of its answer, from its docstring."""
    lines = cleandoc(function.__doc__ or "").splitlines()
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        if match := re.match(r"    (\w+): (.+)", line):
            name, found[match[1]] = match[1], match[2]
        elif line.startswith("        ") and name:
            found[name] += " " + line.strip()
        else:
            name = ""
    parameters = list(signature(function).parameters)
    (answer,) = set(found) - set(parameters)
    return [(name, found[name]) for name in [*parameters, answer]]


def endpoint(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function for `gr.api`, which passes on whatever JSON a client sends.

    Its parameters are texts, numbers, or a `Seed`. A number may arrive as text, and None is a parameter's default.
    Where a value does not fit, and where the function raises ValueError or OSError, the client gets the message in one
    line.
    """
    hints, parameters = get_type_hints(function, include_extras=True), signature(function).parameters

    @wraps(function)
    def answer(*values: Any) -> Any:
        try:
            given = zip(parameters.values(), values, strict=False)
            return function(*(_fitting(parameter, hints[parameter.name], value) for parameter, value in given))
        except (ValueError, OSError) as error:
            raise gr.Error(" ".join(str(error).split()), print_exception=False) from None

    return answer


def _fitting(parameter: Parameter, hint: Any, value: Any) -> Any:
    """A value as one of the types of a parameter; raises ValueError if it is none of them."""
    kinds = [kind for kind in KINDS if kind in (get_args(hint) or (hint,))]
    if value is None and parameter.default is not Parameter.empty:
        return parameter.default
    if type(value) in kinds:
        return value
    if type(value) in KINDS:
        for kind in kinds:
            with suppress(ValueError, OverflowError):
                if kind is not str and (isinstance(value, str) or kind(value) == value):
                    return kind(value)
    expected = " or ".join(KINDS[kind] for kind in kinds)
    raise ValueError(f"{parameter.name} must be {expected}, got {shown(value)!r}")
