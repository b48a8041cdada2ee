"""CUDA devices that are not there: tensors that say they are on ``cuda:0`` or ``cuda:1`` and are computed on the CPU.

Values are real, so a model runs as it would, and its answers can be compared with the CPU's. What a CPU would forgive
and a GPU would not, tensors of several devices in one operation, is an error by CUDA's own rules. Kernels, streams,
memory and races are not simulated.
"""

import contextlib
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

CPU = torch.device("cpu")
INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put", "_index_put_impl_"}
STRICT = {"cat", "stack", "gather", "index_select", "scatter", "mm", "bmm"}  # take no numbers from the CPU
MATH = 0  # of the kernels of scaled_dot_product_attention: plain operations


class MixedDevicesError(RuntimeError):
    """Tensors of several devices met in one operation."""


class Simulated(Tensor):
    """A tensor that says it is on a device; ``held``, on the CPU, has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held, device=None, requires_grad=False):
        if device is None:  # accelerate makes a parameter of another's class
            return torch.nn.Parameter(held, requires_grad)
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "layout": held.layout}
        made = Tensor._make_wrapper_subclass(cls, held.size(), dtype=held.dtype, device=device, **layout)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return Machine().run(func, args, kwargs or {})

    def tolist(self):
        return self.held.tolist()

    def new_tensor(self, data, dtype=None, device=None):
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device)

    def numpy(self, *_, **__):
        raise TypeError(f"can't convert {self.device} device type tensor to numpy")

    def data_ptr(self):
        return self.held.data_ptr()

    def __deepcopy__(self, memo):
        return Simulated(self.held.clone(), self.device)

    def __repr__(self, *_, **__):
        return f"Simulated({self.device}, {tuple(self.shape)}, {self.dtype})"


class Machine(TorchDispatchMode):
    """Two devices, while it is entered. A subclass can watch what is run, read and copied."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        """Run an operation on the CPU, and say that the result is where it would be."""
        name, wanted = func._overloadpacket.__name__, _indexed(kwargs.get("device"))
        leaves, form = tree_flatten((args, kwargs))
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        simulated = [x for x in tensors if isinstance(x, Simulated)]
        if not simulated and (wanted is None or wanted.type != "cuda"):
            return func(*args, **kwargs)
        if name == "_to_copy":
            return self.copy(func, args[0], wanted or args[0].device, kwargs)
        if name == "copy_":
            func(_held(args[0]), _held(args[1]))
            return args[0]
        if name == "lift_fresh":
            return args[0]
        if name == "_fused_sdp_choice":
            return MATH
        self.check(func, name, args, tensors)
        home = args[0].device if name in INDEXING else wanted or simulated[0].device
        args, kwargs = tree_unflatten([_held(x) for x in leaves], form)
        return self.placed(func(*args, **kwargs), simulated, home)

    def check(self, func, name, args, tensors):
        """Raise MixedDevicesError unless CUDA would take the tensors of an operation together."""
        if name in INDEXING:  # indices may be on the CPU, and so may a number that is put there
            fitting = (*[x for x in args[1] if x is not None and x.device.type != "cpu"], *args[2:3])
            met = {args[0].device} | {x.device for x in fitting if isinstance(x, Tensor) and not _is_number(x)}
        else:
            met = {x.device for x in tensors if name in STRICT or not _is_number(x)}
        if len(met) > 1:
            found = ", ".join(sorted(map(str, met)))
            raise MixedDevicesError(f"{func}: expected all tensors to be on the same device, but found {found}")

    def copy(self, func, x, device, kwargs):
        """A tensor on another device, or in another dtype."""
        rest = {name: value for name, value in kwargs.items() if name not in ("device", "non_blocking", "pin_memory")}
        if device.type != "cuda":
            return func(_held(x), **rest, device=device)
        return Simulated(func(_held(x), **rest), device)

    def placed(self, output, inputs, device):
        """What an operation returns: inputs that it changed in place as they are, everything else on ``device``."""
        known = {id(x.held): x for x in inputs}

        def place(x):
            return known[id(x)] if id(x) in known else Simulated(x, device) if isinstance(x, Tensor) else x

        return place(output) if isinstance(output, Tensor) else tree_map(place, output)

    def __enter__(self):
        torch._C._ensureCUDADeviceGuardSet()  # a guard that does nothing, as FakeTensorMode has it
        self._patches = contextlib.ExitStack()
        for name in ("tensor", "as_tensor"):
            self._patches.enter_context(mock.patch.object(torch, name, _made(getattr(torch, name))))
        self._patches.enter_context(mock.patch.object(torch.accelerator, "synchronize", _synchronize))
        for name in ("_lazy_init", "synchronize", "empty_cache"):
            self._patches.enter_context(mock.patch.object(torch.cuda, name))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._patches.close()


def _is_number(x):
    return x.dim() == 0 and x.device.type == "cpu"


def _held(x):
    """An argument of an operation, as the CPU takes it."""
    if isinstance(x, torch.device):
        return CPU
    return x.held if isinstance(x, Simulated) else x


def _indexed(device):
    device = None if device is None else torch.device(device)
    return torch.device("cuda", 0) if device == torch.device("cuda") else device


def _synchronize(device=None):
    if torch.device(device or "cuda").type != "cuda":
        raise ValueError(f"{device} doesn't match the current accelerator cuda.")


def _made(make):
    """``torch.tensor`` as C++ has it: numbers are read one by one and put into memory of the CPU, which is copied."""

    def read(data):
        if isinstance(data, Simulated):
            return data.tolist()
        return type(data)(map(read, data)) if isinstance(data, list | tuple) else data

    def made(data, *args, device=None, **kwargs):
        data = data if isinstance(data, Tensor) else make(read(data), *args, **kwargs)
        return data if device is None else data.to(device)

    return made
