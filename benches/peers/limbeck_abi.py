"""Calls a loss of a Limbeck library through its C ABI on PyTorch's tensors, without a copy.

A mirror of the part of limbeck.h that a loss needs. `device` says what the library is told: with the emulated
driver, tensors of the CPU go under the name of a GPU.
"""
import ctypes as c
import json

import torch

OUTPUT, DIFFERENTIABLE, HOST_MEMORY = 1, 4, 32
CPU = (1, 0)
READ_ONLY, ACCUMULATE, SHAPE_ONLY, ABSENT = 1, 2, 4, 8
CODES = {
    torch.float32: (2, 32), torch.float16: (2, 16), torch.bfloat16: (4, 16), torch.float64: (2, 64),
    torch.int64: (0, 64), torch.int32: (0, 32), torch.uint8: (1, 8),
}


class Str(c.Structure):
    _fields_ = [("ptr", c.c_char_p), ("len", c.c_uint64)]

    def text(self):
        return c.string_at(self.ptr, self.len).decode() if self.len else ""


def string(text):
    raw = text.encode()
    return Str(raw, len(raw))


class Device(c.Structure):
    _fields_ = [("type", c.c_int32), ("id", c.c_int32)]


class DataType(c.Structure):
    _fields_ = [("code", c.c_uint8), ("bits", c.c_uint8), ("lanes", c.c_uint16)]


class DlTensor(c.Structure):
    _fields_ = [
        ("data", c.c_void_p), ("device", Device), ("ndim", c.c_int32), ("dtype", DataType),
        ("shape", c.POINTER(c.c_int64)), ("strides", c.POINTER(c.c_int64)), ("offset", c.c_uint64),
    ]


class Tensor(c.Structure):
    _fields_ = [("name", Str), ("t", DlTensor), ("flags", c.c_uint64), ("reserved", c.c_uint64)]


class Ctx(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint64), ("host", c.c_void_p), ("device", Device), ("stream", c.c_void_p),
        ("step", c.c_uint64), ("micro_step", c.c_uint64), ("key", c.c_uint64 * 2), ("span", c.c_uint64),
    ]


class Port(c.Structure):
    _fields_ = [
        ("name", Str), ("shape", Str), ("rows", Str), ("doc", Str), ("dtypes", c.POINTER(DataType)),
        ("num_dtypes", c.c_uint64), ("flags", c.c_uint64), ("reserved", c.c_uint64),
    ]


class LossCall(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint64), ("ctx", c.POINTER(Ctx)), ("inputs", c.POINTER(Tensor)),
        ("num_inputs", c.c_uint64), ("grads", c.POINTER(Tensor)), ("params", c.POINTER(Tensor)),
        ("param_grads", c.POINTER(Tensor)), ("num_params", c.c_uint64), ("value", c.POINTER(Tensor)),
        ("metrics", c.POINTER(Tensor)), ("num_metrics", c.c_uint64), ("normalizer", c.c_double),
        ("grad_scale", c.c_double), ("workspace", c.c_void_p), ("workspace_bytes", c.c_uint64),
    ]


class Activate(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint64), ("ctx", c.POINTER(Ctx)), ("work_dir", Str), ("rank", c.c_uint32),
        ("world_size", c.c_uint32), ("param_dtype", DataType), ("reserved", c.c_uint32),
    ]


INTERFACE = c.CFUNCTYPE(c.c_void_p, c.c_void_p, Str)
SET = c.CFUNCTYPE(None, c.c_void_p, c.c_int32, Str)
NOTE = c.CFUNCTYPE(None, c.c_void_p, Str, Str)
ENABLED = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_int32, Str)
LOG = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p)
PROGRESS = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p, c.c_uint64, c.c_uint64, Str)
CANCELLED = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_void_p)
METRIC = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p, Str, c.c_double)
THREADS = c.CFUNCTYPE(c.c_uint32, c.c_void_p)
RANGE = c.CFUNCTYPE(None, c.c_void_p, c.c_uint64, c.c_uint64, c.c_uint32)
FOR = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_uint64, c.c_uint64, RANGE, c.c_void_p, c.c_void_p)
ALLOC = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_void_p, c.c_void_p, c.c_void_p)
COPY = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_void_p, c.c_void_p, c.c_void_p, c.c_void_p)


class Host(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint64), ("major", c.c_uint32), ("minor", c.c_uint32), ("self", c.c_void_p),
        ("version", Str), ("get_interface", INTERFACE), ("error_set", SET), ("error_note", NOTE),
        ("log_enabled", ENABLED), ("log", LOG), ("progress", PROGRESS), ("cancelled", CANCELLED),
        ("metric", METRIC), ("num_threads", THREADS), ("parallel_for", FOR), ("tensor_alloc", ALLOC),
        ("tensor_copy", COPY),
    ]


class Failed(Exception):
    """What the library said."""


class Errors:
    """The slot of a failing call."""

    def __init__(self):
        self.text = ""

    def host(self):
        def error_set(_, status, text):
            self.text = f"status {status}: {text.text()}"

        def parallel_for(_, n, _grain, body, user, _error):
            body(user, 0, n, 0)
            return 0

        return Host(
            c.sizeof(Host), 1, 0, None, string("peers"), INTERFACE(lambda *_: None), SET(error_set),
            NOTE(lambda *_: None), ENABLED(lambda *_: 0), LOG(lambda *_: None), PROGRESS(lambda *_: None),
            CANCELLED(lambda *_: 0), METRIC(lambda *_: None), THREADS(lambda *_: 1), FOR(parallel_for),
            ALLOC(lambda *_: 7), COPY(lambda *_: 6),
        )


class Module(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint64), ("major", c.c_uint32), ("minor", c.c_uint32), ("build_info", Str),
        ("init", c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_void_p)), ("deinit", c.c_void_p),
        ("descriptor", c.CFUNCTYPE(c.c_void_p, c.c_uint64)), ("get_interface", c.CFUNCTYPE(c.c_void_p, Str)),
        ("create", c.CFUNCTYPE(c.c_int32, c.c_void_p, Str, Str, c.POINTER(c.c_void_p), c.c_void_p)),
    ]


class Plugin(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint64), ("self", c.c_void_p), ("get_interface", INTERFACE),
        ("ports", c.CFUNCTYPE(c.c_int32, c.c_void_p, c.POINTER(c.POINTER(Port)), c.POINTER(c.c_uint64), c.c_void_p)),
        ("activate", c.CFUNCTYPE(c.c_int32, c.c_void_p, c.POINTER(Activate), c.c_void_p)),
        ("deactivate", c.CFUNCTYPE(None, c.c_void_p)), ("state_save", c.c_void_p), ("state_load", c.c_void_p),
        ("destroy", c.CFUNCTYPE(None, c.c_void_p)),
    ]


class Loss(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint64), ("params", c.c_void_p),
        ("plan", c.CFUNCTYPE(c.c_int32, c.c_void_p, c.POINTER(Tensor), c.c_uint64, c.POINTER(c.c_uint64), c.c_void_p)),
        ("compute", c.CFUNCTYPE(c.c_int32, c.c_void_p, c.POINTER(LossCall), c.c_void_p)),
    ]


class Library:
    """A library of losses."""

    def __init__(self, path, device):
        self.errors, self.device = Errors(), device
        self.host = self.errors.host()
        self.slot = c.create_string_buffer(8)
        entry = c.CDLL(path).lmb_module_v1
        entry.restype = c.POINTER(Module)
        self.module = entry(c.byref(self.host)).contents
        self.check(self.module.init(c.addressof(self.host), self.error()))

    def error(self):
        return c.addressof(self.slot)

    def check(self, status):
        if status != 0:
            raise Failed(self.errors.text or f"status {status}")

    def tensor(self, name, tensor, flags, device=None):
        """A view; keeps what it points to alive. On the library's device unless told else."""
        shape = (c.c_int64 * max(tensor.dim(), 1))(*tensor.shape)
        strides = (c.c_int64 * max(tensor.dim(), 1))(*tensor.stride())
        dl = DlTensor(
            tensor.data_ptr(), Device(*(device or self.device)), tensor.dim(), DataType(*CODES[tensor.dtype], 1), shape, strides, 0
        )
        view = Tensor(string(name), dl, flags, 0)
        view.keep = (tensor, shape, strides)
        return view

    def context(self, stream):
        return Ctx(c.sizeof(Ctx), c.addressof(self.host), Device(*self.device), stream, 0, 0, (c.c_uint64 * 2)(), 0)


class Instance:
    """A loss, active on the library's device."""

    def __init__(self, library, loss, config, stream=None):
        self.library, self.stream = library, stream
        handle = c.c_void_p()
        create = library.module.create
        library.check(
            create(c.addressof(library.host), string(loss), string(json.dumps(config)), c.byref(handle), library.error())
        )
        self.plugin = c.cast(handle, c.POINTER(Plugin)).contents
        self.raw = handle.value
        self.active = False
        context = library.context(stream)
        activate = Activate(c.sizeof(Activate), c.pointer(context), string(""), 0, 1)
        status = self.plugin.activate(self.raw, c.byref(activate), library.error())
        self.active = status == 0
        library.check(status)
        self.loss = c.cast(self.plugin.get_interface(self.raw, string("lmb.loss/1")), c.POINTER(Loss)).contents
        ports, count = c.POINTER(Port)(), c.c_uint64()
        library.check(self.plugin.ports(self.raw, c.byref(ports), c.byref(count), library.error()))
        self.ports = [(ports[i].name.text(), ports[i].flags) for i in range(count.value)]

    def close(self):
        if self.active:
            self.plugin.deactivate(self.raw)
        self.plugin.destroy(self.raw)

    def prepare(self, inputs, grads, normalizer, grad_scale=1.0, accumulate=False):
        """A function that computes into `grads` and returns the tensors of value and metrics."""
        library = self.library
        ports = [(name, CPU if flags & HOST_MEMORY else None) for name, flags in self.ports if not flags & OUTPUT]
        names = [name for name, _ in ports]
        some = next(inputs[name] for name, host in ports if name in inputs and not host)
        metrics = sum(1 for _, flags in self.ports if flags & OUTPUT)
        absent = Tensor(string(""), DlTensor(), ABSENT, 0)
        views = [library.tensor(n, inputs[n], READ_ONLY, at) if n in inputs else absent for n, at in ports]
        flags = ACCUMULATE if accumulate else 0
        outs = [library.tensor(n, grads[n], flags) if n in grads else absent for n in names]
        scalars = torch.full((1 + metrics,), float("nan"), device=some.device)
        scalar_views = [library.tensor("scalar", scalars[i : i + 1], 0) for i in range(1 + metrics)]
        array = lambda list: (Tensor * max(len(list), 1))(*list)
        raw_inputs, raw_grads, raw_metrics = array(views), array(outs), array(scalar_views[1:])
        needed = c.c_uint64()
        library.check(self.loss.plan(self.raw, raw_inputs, len(views), c.byref(needed), library.error()))
        workspace = torch.full((needed.value + 256,), 255, dtype=torch.uint8, device=some.device)
        start = -workspace.data_ptr() % 256
        context = library.context(self.stream)
        call = LossCall(
            c.sizeof(LossCall), c.pointer(context), raw_inputs, len(views), raw_grads, None, None, 0,
            c.pointer(scalar_views[0]), raw_metrics, metrics, normalizer, grad_scale,
            workspace.data_ptr() + start, needed.value,
        )
        keep = (views, outs, scalar_views, raw_inputs, raw_grads, raw_metrics, workspace, context, inputs, grads)

        def compute(keep=keep):
            library.check(self.loss.compute(self.raw, c.byref(call), library.error()))
            return scalars

        return compute
