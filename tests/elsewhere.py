"""A second device without one: tensors that live on the CPU, say that they are elsewhere, and refuse to meet others.

    with elsewhere():                     torch.zeros(3, device=DEVICE) is an `Elsewhere`, as is what is made from it
        move(model); generate(model, ...)

What a GPU forbids is an error here: operations on tensors of both devices (but for indices and single numbers, as on a
GPU). The numbers are the CPU's, so results are equal to the bit to those of a run without. DEVICE is called "meta",
since torch asks nothing of that device itself.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("meta")
MOVES = ("copy_", "_to_copy", "to")  # what may go from one device to the other


class Elsewhere(Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor):
        return Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip

    def __init__(self, inner: Tensor):
        self.inner = inner

    def __repr__(self):
        return f"Elsewhere({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), function.overloadpacket.__name__
        indices = tree_leaves(args[1]) if name.startswith("index") and len(args) > 1 else []
        for leaf in tree_leaves((args, kwargs)):
            if is_here(leaf) and name not in MOVES and not any(leaf is index for index in indices):
                raise RuntimeError(f"{name}: a tensor of the CPU among those of another device")
        target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else DEVICE
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        out = function(*unwrap(args), **unwrap(kwargs))
        if name.endswith("_") and not name.endswith("__"):
            return args[0]
        return tree_map_only(Tensor, Elsewhere, out) if target == DEVICE else out


def is_here(leaf) -> bool:
    return isinstance(leaf, Tensor) and not isinstance(leaf, Elsewhere) and leaf.dim() > 0


def unwrap(tree):
    return tree_map_only(Elsewhere, lambda tensor: tensor.inner, tree)


class Made(TorchDispatchMode):
    """What is made on, or sent to, DEVICE."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        elsewhere = any(isinstance(leaf, Elsewhere) for leaf in tree_leaves((args, kwargs)))
        if elsewhere or kwargs.get("device") == DEVICE:
            return Elsewhere.__torch_dispatch__(function, types, args, kwargs)
        return function(*args, **kwargs)


class Called(TorchFunctionMode):
    """What torch does in C++ before it asks the tensor: done on the CPU, after the same checks."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if not args or not isinstance(args[0], Elsewhere):
            if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") == DEVICE:
                return Elsewhere(function(*args, **{**kwargs, "device": "cpu"}))
            return function(*args, **kwargs)
        if function is Tensor.tolist:
            return args[0].inner.tolist()
        if function is Tensor.__setitem__:
            if is_here(args[2]):
                raise RuntimeError("setitem: a value of the CPU for a tensor of another device")
            return function(*unwrap(args))
        if function is F.scaled_dot_product_attention or (function is Tensor.__getitem__ and not args[0].requires_grad):
            return Elsewhere(function(*unwrap(args), **unwrap(kwargs)))
        return function(*args, **kwargs)


@contextmanager
def elsewhere():
    with Called(), Made():
        yield


def move(model: nn.Module) -> nn.Module:
    """Put a model's weights there."""
    for name, weight in list(model.named_parameters()):
        module, last = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        setattr(module, last, nn.Parameter(Elsewhere(weight.data.clone()), requires_grad=weight.requires_grad))
    return model


def here(tensor: Tensor) -> Tensor:
    """Its numbers, whichever its device."""
    return unwrap(tensor.detach())
