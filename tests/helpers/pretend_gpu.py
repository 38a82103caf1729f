"""A GPU that is not there: tensors that say they are on ``cuda:0``, compute on the CPU, and refuse to meet those of the CPU.

    with pretend_gpu() as gpu:
        network = ReadyNetwork(model, slices=3, device="cuda", dtype="float32")

A tensor is on the pretended GPU if it was moved or created there; an operation that mixes it with one of the CPU raises,
as on a real one, and so does ``numpy()``. Numbers without dimensions may mix, as they may there.
"""

from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest import mock

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["Far", "PretendGpu", "pretend_gpu"]

aten = torch.ops.aten


class Far(torch.Tensor):
    """A tensor on the pretended GPU, around one of the CPU that holds its values."""

    @staticmethod
    def __new__(cls, held, index=0):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
        )

    def __init__(self, held, index=0):
        self.held, self.index = held, index

    @property
    def device(self):
        return torch.device("cuda", self.index)

    @property
    def is_cuda(self):
        return True

    def __repr__(self):
        return f"Far({self.held!r})"

    def __deepcopy__(self, memo):
        copied = Far(self.held.detach().clone(), self.index).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func}: a tensor of the pretended GPU was used when there was none")


class PretendGpu(TorchDispatchMode):
    """The GPU: runs operations on the tensors that are there.

    Attributes:
        pinned: number of tensors that were put into pinned memory.
        copied: number of tensors that it copied by itself, from pinned memory.
    """

    def __init__(self):
        super().__init__()
        self.pinned = self.copied = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, torch.Tensor)]
        far = [item for item in given if isinstance(item, Far)]
        if func is aten.is_pinned.default:
            return False
        if func is aten._pin_memory.default:
            self.pinned += 1
            return args[0].clone()
        target = kwargs.get("device")
        if kwargs.get("generator") is not None and _index(target) is not None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        index = far[0].index if target is None and far else _index(target)
        if func is aten._to_copy.default:
            waits = not kwargs.pop("non_blocking", False)
            self.copied += index is not None and not far and not waits
        elif func is aten.copy_.default:
            self._held(args[0]).copy_(self._held(args[1]))
            return args[0]
        elif func is not aten.index.Tensor:  # for which a real one copies the indices
            _check_together(func, far, [item for item in given if not isinstance(item, Far) and item.ndim])
        out = func(*tree_map(self._held, args), **tree_map(self._held, kwargs))
        return out if index is None else self._returned(out, args, index)

    @staticmethod
    def _held(item):
        return item.held if isinstance(item, Far) else item

    @staticmethod
    def _returned(out, args, index):
        known = {id(item.held): item for item in tree_flatten(args)[0] if isinstance(item, Far)}

        def wrap(item):
            if not isinstance(item, torch.Tensor):
                return item
            return known[id(item)] if id(item) in known else Far(item, index)

        return tree_map(wrap, out)


def _index(target):
    """Return the number of the GPU that a device is; None for the CPU."""
    return None if target is None or torch.device(target).type != "cuda" else torch.device(target).index or 0


def _check_together(func, far, near):
    places = {str(item.device) for item in far} | {"cpu" for _ in near}
    if far and len(places) > 1:
        shapes = [tuple(item.shape) for item in (*far, *near)]
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but found {places}, of {shapes}"
        )


class _Fetch(torch.autograd.Function):
    """Moves a tensor of the pretended GPU to the CPU."""

    @staticmethod
    def forward(ctx, tensor):
        ctx.device = tensor.device
        return tensor.held.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to(ctx.device)


class _Calls(TorchFunctionMode):
    """What PyTorch decides before an operation reaches a device: it knows no GPU, and takes ``Far`` for the CPU's."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = _indexed(kwargs["device"])
        if func in (torch.Tensor.cpu, torch.Tensor.to):
            rest = [_indexed(item) for item in args[1:]]
            if rest and isinstance(rest[0], torch.Tensor):  # the device and the dtype of another tensor
                rest = [rest[0].device, rest[0].dtype, *rest[1:]]
            devices = [item for item in (*rest, kwargs.get("device")) if isinstance(item, torch.device)]
            leaves = func is torch.Tensor.cpu or any(item.type == "cpu" for item in devices)
            given = _Fetch.apply(args[0]) if leaves and isinstance(args[0], Far) else args[0]
            return func(given, *rest, **kwargs)
        if func == torch.Tensor.data.__set__ and isinstance(args[0], Far):
            args[0].held = args[1].held
        if func is torch.Tensor.tolist and isinstance(args[0], Far):
            return args[0].held.tolist()
        if func in (torch.Tensor.new_tensor, nn.functional.one_hot) and isinstance(args[0], Far):
            return func(args[0].held, *args[1:], **kwargs).to(args[0].device)
        if func is torch.tensor and "device" in kwargs:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


def _indexed(item):
    if isinstance(item, str | torch.device) and str(item) == "cuda":
        return torch.device("cuda", 0)
    return torch.device(item) if isinstance(item, str) else item


@contextmanager
def pretend_gpu(count=1):
    """Pretend that there is a GPU in the block, or several that are all the same one."""
    gpu = PretendGpu()
    stand_ins = {
        "_lazy_init": lambda: None,
        "get_device_properties": lambda _: SimpleNamespace(major=7),  # which has no bfloat16
        "is_available": lambda: True,
        "device_count": lambda: count,
        "get_rng_state": lambda *_: torch.zeros(1),
        "set_rng_state": lambda *_: None,
    }
    with ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        # The parameters of a module that is moved are made anew: their data cannot become that of a ``Far``.
        stack.enter_context(
            mock.patch.object(
                torch.__future__, "get_overwrite_module_params_on_conversion", return_value=True
            )
        )
        stack.enter_context(gpu)
        stack.enter_context(_Calls())
        yield gpu
