"""Tiny pipelines whose own defaults are those of their tests: small pictures, two steps."""

import copy
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any

from tiny_pipelines import FAMILIES, pipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def small(name: str) -> "DiffusionPipeline":
    """The tiny pipeline of a family, whose call has the arguments of the family's own call as its defaults."""
    pipe, call = copy.copy(pipeline(name)), FAMILIES[name].call
    kind, original = type(pipe), type(pipe).__call__
    parameters = signature(original).parameters.values()

    @wraps(original)
    def with_defaults(self: "DiffusionPipeline", *args: Any, **given: Any) -> Any:
        return original(self, *args, **call | given)

    known = [one.replace(default=call[one.name]) if one.name in call else one for one in parameters]
    with_defaults.__signature__ = signature(original).replace(parameters=known)  # type: ignore[attr-defined]
    pipe.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, "__call__": with_defaults})
    return pipe
