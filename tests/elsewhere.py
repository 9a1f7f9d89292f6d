"""A pretended accelerator, "elsewhere", for machines that have none.

Its tensors hold CPU data and compute on the CPU, so results are real, but as on a GPU they refuse to mix with tensors
of the CPU: an operator that gets both raises, and so does `.numpy()`. 0-dimensional CPU tensors may join, CPU indices
too. Importing this module registers the device with torch, and makes it the one that Accelerate chooses, for the whole
process: only `on_another_device.py` does so, in a process of its own.
"""

from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "elsewhere"
DEVICE = torch.device("cpu")  # until the device is registered, at the end

aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXING = (
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
)


class ElsewhereTensor(Tensor):
    """A tensor that torch takes for one on the pretended device; `here` is the CPU tensor with its data."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "ElsewhereTensor":
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            layout=here.layout,
            device=DEVICE,
        )

    def __init__(self, here: Tensor):
        self.here = here

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"ElsewhereTensor({self.here!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return dispatch(func, args, kwargs or {})

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.here.untyped_storage()

    def data_ptr(self) -> int:
        return self.here.data_ptr()

    def tolist(self) -> Any:
        return self.here.tolist()

    def numpy(self, **_: Any) -> Any:  # type: ignore[override]
        raise TypeError(f"can't convert {NAME} device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __deepcopy__(self, memo: dict) -> Tensor:
        copy: Tensor = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        else:
            copy.requires_grad_(self.requires_grad)
        memo[id(self)] = copy
        return copy


def dispatch(func: Any, args: tuple, kwargs: dict) -> Any:
    """Run an operator on the CPU; its result is elsewhere if its inputs are, or if the call says so."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    away = [t for t in tensors if isinstance(t, ElsewhereTensor)]
    at_home = [t for t in tensors if not isinstance(t, ElsewhereTensor) and t.dim() > 0]
    indexes = func in INDEXING and isinstance(args[0], ElsewhereTensor)
    if away and at_home and func not in COPIES and not indexes:
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {DEVICE} and cpu")
    device = kwargs.get("device")
    if device is not None:
        result_away = torch.device(device).type == NAME
    else:
        result_away = isinstance(args[0], ElsewhereTensor) if func in COPIES else bool(away)
    args, kwargs = pytree.tree_map_only(ElsewhereTensor, lambda t: t.here, (args, dict(kwargs)))
    if device is not None and result_away:
        kwargs["device"] = torch.device("cpu")
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    out = func(*args, **kwargs)
    if not result_away:
        return out
    wrapped = {id(t.here): t for t in away}  # what an operator changed in place stays the same object

    def wrap(tensor: Tensor) -> Tensor:
        if isinstance(tensor, ElsewhereTensor):
            return tensor
        return wrapped[id(tensor)] if id(tensor) in wrapped else ElsewhereTensor(tensor)

    return pytree.tree_map_only(Tensor, wrap, out)


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return ElsewhereTensor(torch.empty_strided(size, stride, dtype=dtype))


def _empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
    memory_format = memory_format or torch.contiguous_format
    return ElsewhereTensor(torch.empty(size, dtype=dtype, memory_format=memory_format))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    get = getattr(target, "here", target)
    get.copy_(getattr(source, "here", source))
    return target


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = None) -> Tensor:  # random numbers are the CPU's
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
DEVICE = torch.device(NAME, 0)
_KERNELS = torch.library.Library("aten", "IMPL")
_KERNELS.impl("empty_strided", _empty_strided, "PrivateUse1")
_KERNELS.impl("empty.memory_format", _empty, "PrivateUse1")
_KERNELS.impl("_copy_from", _copy_from, "PrivateUse1")
_AUTOCAST = torch.library.Library("_", "IMPL")
_AUTOCAST.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # autocast changes nothing there
PartialState.default_device = property(lambda _: DEVICE)  # type: ignore[method-assign, assignment]
torch.accelerator.synchronize = lambda *_: None  # nothing is ever pending
torch.accelerator.max_memory_allocated = lambda *_: 2**20
