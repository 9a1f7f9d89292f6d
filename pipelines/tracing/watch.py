"""Recording the calls of a diffusers pipeline from outside: nothing of it is copied, and nothing stays behind.

While a `watched` block is open, the pipeline object has a subclass of its class, whose call puts hooks on its denoiser
and text encoders and takes them off again. Calls of the same pipeline in other threads are not recorded.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from threading import Lock
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from pipelines.tracing.calibrations import saved_calibration
from pipelines.tracing.call import Call, Check, EditsOfText
from pipelines.tracing.excite_any import check_excitable
from pipelines.tracing.kernels import Watch
from unet_xattn import AttentionTrace


class CannotRecordError(TypeError, ValueError):
    """A pipeline of a kind that cannot be recorded: a wrong type in Python, and to a person a wrong value."""


@dataclass(frozen=True)
class Edits:
    """Edits of calls. of_call: called with a call's arguments by name. excites: whether latents are to be moved."""

    of_call: Callable[[Mapping[str, Any]], EditsOfText]
    excites: bool


Watcher = tuple[DiffusionPipeline, AttentionTrace, Check | None, Edits | None]

_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers", default=())
"""The open `watched` blocks of this thread (or task), innermost last."""

_running: ContextVar[Call | None] = ContextVar("running", default=None)
"""The recorded call that is running in this thread."""

_lock = Lock()


@contextmanager
def watched(
    pipe: DiffusionPipeline, attention: AttentionTrace, check: Check | None = None, edits: Edits | None = None
) -> Iterator[None]:
    """Record each call of `pipe` in this block into `attention`, with edits; a later call replaces the recording.

    Raises:
        CannotRecordError: the pipeline takes no prompt, or has no denoiser.
    """
    denoiser_of(pipe)
    if "prompt" not in inspect.signature(type(pipe).__call__).parameters:
        raise CannotRecordError(f"{type(pipe).__name__} cannot be recorded: it takes no prompt")
    with ExitStack() as stack:
        _put_on(pipe)
        stack.callback(_take_off, pipe)
        token = _watchers.set((*_watchers.get(), (pipe, attention, check, edits)))
        stack.callback(_watchers.reset, token)
        yield


def _put_on(pipe: DiffusionPipeline) -> None:
    """Give the pipeline a watched subclass of its class, or count one block more."""
    with _lock:
        kind = type(pipe)
        if not issubclass(kind, _Watched):
            names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "_blocks": 0}
            pipe.__class__ = type(kind.__name__, (_Watched, kind), names | {"__call__": _watched_call(kind.__call__)})
        type(pipe)._blocks += 1


def _take_off(pipe: DiffusionPipeline) -> None:
    with _lock:
        type(pipe)._blocks -= 1
        if not type(pipe)._blocks:
            pipe.__class__ = type(pipe).__mro__[2]


class _Watched:
    """Marks the subclasses; `_blocks` counts the open blocks of the one pipeline that has it."""

    _blocks: int


def _watched_call(original: Callable) -> Callable:
    @wraps(original)
    def call(self: DiffusionPipeline, *args: Any, **kwargs: Any) -> Any:
        for pipe, attention, check, edits in reversed(_watchers.get()):
            if pipe is self:
                return _record(self, original, attention, check, edits, args, kwargs)
        return original(self, *args, **kwargs)

    return call


def _record(
    pipe: DiffusionPipeline,
    original: Callable,
    attention: AttentionTrace,
    check: Check | None,
    edits: Edits | None,
    args: tuple,
    kwargs: dict[str, Any],
) -> Any:
    try:
        bound = inspect.signature(original).bind(pipe, *args, **kwargs)
    except TypeError:
        return original(pipe, *args, **kwargs)  # raises its own error
    bound.apply_defaults()
    encoders = _text_encoders(pipe)
    tokenizers = {name: tokenizer for name, (_, tokenizer) in encoders.items()}
    of_text = None if edits is None else edits.of_call(bound.arguments)
    call = Call(attention, tokenizers, bound.arguments, check, of_text)
    if edits is not None and edits.excites:
        check_excitable(pipe, bound.arguments)
        kwargs = {**kwargs, "callback_on_step_end": call.move_latents}
    with ExitStack() as stack:
        stack.callback(_running.reset, _running.set(call))
        _hook_denoiser(stack, denoiser_of(pipe), call)
        for name, (encoder, _) in encoders.items():
            _hook_encoder(stack, name, encoder, call)
        if _is_compiled(pipe):  # compiled code has no kernels to see
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if attention.concepts:
            call.read_concepts(pipe, denoiser_of(pipe))
        stack.enter_context(Watch(call.fused, call.softmax))
        out = original(pipe, *map(_copied, args), **{name: _copied(value) for name, value in kwargs.items()})
    call.finish(out[0], saved_calibration(pipe, denoiser_of(pipe)))
    return out


def _copied(value: Any) -> Any:
    """A copy of a list, because Z-Image rewrites its list of prompts, which is the caller's."""
    return list(value) if isinstance(value, list) else value


def _of_call(call: Call, act: Callable[..., None]) -> Callable[..., None]:
    """A hook that acts in the thread of a call only.

    In another thread it may come without the keyword arguments it was registered for: torch forgets about these when it
    takes a hook off, also while that thread is about to run it.
    """

    def hook(*given: Any) -> None:
        if _running.get() is call:
            act(*given)

    return hook


def _hook_denoiser(stack: ExitStack, denoiser: nn.Module, call: Call) -> None:
    def after(module: nn.Module, args: tuple, out: Any) -> None:
        call.leave_denoiser(module, out)

    stack.callback(denoiser.register_forward_pre_hook(_of_call(call, call.enter_denoiser), with_kwargs=True).remove)
    stack.callback(denoiser.register_forward_hook(_of_call(call, after)).remove)
    for name, module in denoiser.named_modules():
        if hasattr(module, "processor"):
            _hook_layer(stack, name, module, call)


def _hook_layer(stack: ExitStack, name: str, layer: nn.Module, call: Call) -> None:
    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        own = kwargs.get("hidden_states", args[0] if args else None)
        text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        call.enter_layer(name, handed=text is not None and text is not own)

    def after(module: nn.Module, args: tuple, out: Any) -> None:
        call.leave_layer()

    stack.callback(layer.register_forward_pre_hook(_of_call(call, before), with_kwargs=True).remove)
    stack.callback(layer.register_forward_hook(_of_call(call, after)).remove)


def _hook_encoder(stack: ExitStack, name: str, encoder: nn.Module, call: Call) -> None:
    def after(module: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is not None:
            mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
            call.provenance.add(name, ids, mask, out)

    stack.callback(encoder.register_forward_hook(_of_call(call, after), with_kwargs=True).remove)


def denoiser_of(pipe: DiffusionPipeline) -> nn.Module:
    """The network that draws, without the wrapper of `torch.compile`.

    Raises:
        CannotRecordError: there is none.
    """
    for name in ("transformer", "unet"):
        found = getattr(pipe, name, None)
        if found is not None:  # a compiled module has no truth value
            return getattr(found, "_orig_mod", found)
    raise CannotRecordError(f"{type(pipe).__name__} cannot be recorded: it has no unet and no transformer")


def _text_encoders(pipe: DiffusionPipeline) -> dict[str, tuple[nn.Module, Any]]:
    """Each text encoder of the pipeline with its tokenizer."""
    found = {}
    for name, encoder in pipe.components.items():
        tokenizer = pipe.components.get(name.replace("text_encoder", "tokenizer"))
        if name.startswith("text_encoder") and isinstance(encoder, nn.Module) and tokenizer is not None:
            found[name] = getattr(encoder, "_orig_mod", encoder), getattr(tokenizer, "tokenizer", tokenizer)
    return found


def _is_compiled(pipe: DiffusionPipeline) -> bool:
    networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for network in networks
        for module in network.modules()
    )
