"""A device that is not there: tensors "far" away hold ordinary numbers, and an operation that mixes them with near ones is an error.

So what would fail on a GPU, because a tensor was left on the host, fails here, and what works gives numbers to compare. As on a GPU, a
scalar may be near, and so may indices.
"""

import contextlib

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FAR = "lazy"  # a device that torch names and nobody provides; its backward passes run in the thread that asked
MAY_MIX = ("aten.index.", "aten.index_put", "aten.copy_.", "aten._to_copy.", "aten._index_put_impl")


class Far(torch.Tensor):
    """`inner`, said to be far."""

    @staticmethod
    def __new__(cls, inner):
        place = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype, "device": f"{FAR}:0"}
        far = torch.Tensor._make_wrapper_subclass(cls, inner.shape, requires_grad=inner.requires_grad, **place)
        far.inner = inner
        return far

    def tolist(self):
        return self.inner.tolist()

    def data_ptr(self):
        return self.inner.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return work(func, args, kwargs or {})


def work(func, args, kwargs):
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    far = any(isinstance(x, Far) for x in given)
    near = [x for x in given if not isinstance(x, Far) and x.ndim]
    if far and near and not str(func).startswith(MAY_MIX):
        raise RuntimeError(f"{func}: found tensors here ({near[0].shape}) and far away; expected them on one device")
    if func is torch.ops.aten.copy_.default:
        far = isinstance(args[0], Far)
    if kwargs.get("device") is not None:
        far = torch.device(kwargs["device"]).type == FAR
        kwargs = {**kwargs, "device": torch.device("cpu")}
    inner_args, inner_kwargs = tree_map(lambda x: x.inner if isinstance(x, Far) else x, (args, kwargs))
    out = func(*inner_args, **inner_kwargs)
    name = func._schema.name.rsplit("::")[-1]
    if name.endswith("_") and not name.startswith("_foreach") and isinstance(args[0], torch.Tensor):
        return args[0]
    return tree_map(lambda x: Far(x) if isinstance(x, torch.Tensor) and not isinstance(x, Far) else x, out) if far else out


class Everywhere(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return work(func, args, kwargs or {})


class Made(TorchFunctionMode):
    """What torch fills from Python's own data without asking anybody is made here, and moved: `torch.tensor(...)`, lists as indices."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], Far):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = (args[0], tuple(torch.tensor(i) if isinstance(i, list) else i for i in index), *args[2:])
        return func(*args, **kwargs)


@contextlib.contextmanager
def far_away():
    """While entered, `FAR` is a device."""
    with Made(), Everywhere():
        yield


def move(model: nn.Module) -> None:
    """Put weights and buffers far away; tied weights stay tied."""
    moved = {}
    for module in model.modules():
        for held, wrap in ((module._parameters, True), (module._buffers, False)):
            for name, x in held.items():
                if x is not None and id(x) not in moved:
                    moved[id(x)] = nn.Parameter(Far(x.detach()), x.requires_grad) if wrap else Far(x)
                held[name] = moved.get(id(x))
