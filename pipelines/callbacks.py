"""What a callback reads and changes of the call it is made in, by the names that diffusers' own pipelines use."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

from torch import Tensor

from pipelines.checks import check_number

Callback = Callable[..., dict[str, Tensor] | None]
"""Called as f(pipe, step, timestep, tensors) after each step; it returns the tensors that it replaces."""


@dataclass
class Call:
    """The state of one call of a pipeline.

    guidance_scale: w of classifier-free guidance at the next step.
    guided: whether the next step predicts for the negative prompt too.
    read_negative: whether the negative prompts were read, so that guidance is possible.
    num_timesteps: how often the callback is called.
    interrupt: whether the drawing ends after this step.
    """

    guidance_scale: float
    guided: bool
    read_negative: bool
    num_timesteps: int = 0
    interrupt: bool = False
    running: bool = True


class CallState:
    """The properties of a pipeline that belong to its current call in this thread, or to the last one.

    A callback assigns `_guidance_scale` and `_interrupt`, as in diffusers. Calls in other threads are not affected.
    """

    _calls: dict[int, Call]
    """The current or last call of each thread."""

    @contextmanager
    def _calling(self, call: Call) -> Iterator[None]:
        """Make a call the current one. A callback may itself call the pipeline: then the outer call comes back."""
        outer = self._calls.get(get_ident())
        self._calls[get_ident()] = call
        try:
            yield
        finally:
            call.running = False
            if outer is not None and outer.running:
                self._calls[get_ident()] = outer

    @property
    def _call(self) -> Call:
        if get_ident() not in self._calls:
            raise AttributeError("this thread has not called the pipeline yet, so there is no state of a call")
        return self._calls[get_ident()]

    @property
    def guidance_scale(self) -> float:
        return self._call.guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._call.guided

    @property
    def num_timesteps(self) -> int:
        return self._call.num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._call.interrupt

    @property
    def _guidance_scale(self) -> float:
        return self._call.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, scale: float) -> None:
        """From the next step on; 0 and 1 both switch guidance off, because diffusers' callbacks assign 0 for that.

        Raises:
            ValueError: the scale is not a number in [0, 100], or guides a call that did not read its negative prompts.
        """
        check_number(scale, "guidance scale", 0, 100)
        call, guided = self._call, scale not in (0, 1)
        if guided and not call.read_negative:
            raise ValueError("a call that begins without guidance cannot be guided later: begin with another scale")
        call.guidance_scale, call.guided = float(scale), guided

    @property
    def _interrupt(self) -> bool:
        return self._call.interrupt

    @_interrupt.setter
    def _interrupt(self, interrupt: bool) -> None:
        self._call.interrupt = bool(interrupt)

    def _call_back(
        self, callback: Callback, step: int, timestep: Tensor, offered: dict[str, Tensor], given: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Call a callback with the tensors `given`, and return those `offered` as it leaves them.

        Offered are "latents", and "prompt_embeds": the memory of the prompts, where there is guidance after that of the
        negative prompts, which may be cut off where the callback switches guidance off.

        Raises:
            ValueError: it returned something else than tensors of these names and shapes.
        """
        returned: Any = callback(self, step, timestep, given)
        returned = {} if returned is None else returned
        if not isinstance(returned, dict):
            raise ValueError(f"the callback must return a dict of tensors or None, not {type(returned).__name__}")
        if unknown := [str(name) for name in returned.keys() - offered.keys() - given.keys()]:
            raise ValueError(f"the callback may return {', '.join(offered)}, not {', '.join(unknown)[:80]}")
        count = len(offered["latents"])
        rows = {"latents": (count,), "prompt_embeds": (2 * count,) if self._call.guided else (count, 2 * count)}
        left = {}
        for name, now in offered.items():
            new = returned.get(name, now)
            if not isinstance(new, Tensor) or len(new) not in rows[name] or new.shape[1:] != now.shape[1:]:
                shape = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
                expected = (rows[name][0], *now.shape[1:])
                raise ValueError(f"the callback left {name} of {shape}, expected a tensor of {expected}")
            left[name] = new.to(now)
        return left
