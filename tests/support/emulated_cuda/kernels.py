"""What the kernels of the emulated device compute, with the CPU's operations on the same memory.

Below autograd every operation on the device is seen here: PyTorch's CUDA code finds the memory and launches kernels
that do nothing, and then the values are computed. In a capture it is written down what to compute, and at which
addresses, and a replay does it again.
"""

import ctypes

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

# The library that stands in for CUDA's; `switch_on` sets it.
runtime = None


class Place:
    """Where a tensor of the device lies; it may be gone by the time somebody looks there."""

    def __init__(self, tensor):
        storage = tensor.untyped_storage()
        self.address, self.size, self.offset = storage.data_ptr(), storage.nbytes(), tensor.storage_offset()
        self.shape, self.stride, self.dtype = tuple(tensor.shape), tensor.stride(), tensor.dtype

    def view(self):
        """Return a tensor of the host on the same memory."""
        if not self.size:
            return torch.empty(self.shape, dtype=self.dtype)
        memory = torch.frombuffer((ctypes.c_char * self.size).from_address(self.address), dtype=torch.uint8)
        return torch.empty(0, dtype=self.dtype).set_(memory.untyped_storage(), self.offset, self.shape, self.stride)

    def note(self, what, writes):
        """Tell the runtime that the current stream looks at this memory."""
        if self.size and 0 not in self.shape:
            item = self.dtype.itemsize
            spanned = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
            stream = torch.cuda.current_stream().cuda_stream
            start = self.address + self.offset * item
            runtime.emulated_access(start, spanned * item, stream, writes, str(what).encode())


def is_place(value):
    return isinstance(value, Place)


def on_device(value):
    return isinstance(value, torch.Tensor) and value.device.type == "cuda"


def places(tree):
    """Replace the tensors of the device by their places."""
    return tree_map(lambda value: Place(value) if on_device(value) else value, tree)


def for_host(tree):
    """Replace places by tensors of the host, and the device by the host."""

    def one(value):
        if isinstance(value, torch.device) and value.type == "cuda":
            return torch.device("cpu")
        return value.view() if is_place(value) else value

    return tree_map(one, tree, is_leaf=is_place)


aten = torch.ops.aten
# Only the host's part is asked for: the memory of a new tensor, or a number that was computed before.
PLAIN = {
    aten._local_scalar_dense, aten.detach, aten.record_stream, aten.is_pinned, aten._pin_memory, aten.set_,
    aten.resize_, aten.empty, aten.empty_strided, aten.empty_like, aten.new_empty, aten.new_empty_strided,
}  # fmt: skip
# The sizes of what comes out depend on the values.
SIZED_BY_VALUES = {aten.bincount, aten.nonzero, aten.masked_select, aten._unique2}


class Arithmetic(TorchDispatchMode):
    """Lets PyTorch do what it does on a CUDA device, and computes the values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_flatten((args, kwargs))[0]
        device = any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves)
        if not device and not any(map(on_device, leaves)):
            return function(*args, **kwargs)
        packet, schema = function.overloadpacket, function._schema
        if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"):
            with self:
                return function.decompose(*args, **kwargs)
        is_view = not schema.is_mutable and any(result.alias_info is not None for result in schema.returns)
        if packet in PLAIN or is_view or crosses(packet, args, kwargs):
            return function(*args, **kwargs)
        recording = Recording.current if torch.cuda.is_current_stream_capturing() else None
        inside = places((args, kwargs))
        booleans = packet is aten.index and any(i is not None and i.dtype == torch.bool for i in args[1])
        if packet in SIZED_BY_VALUES or booleans:
            assert recording is None, f"{function} waits for the device"
            values = computed(function, *inside)
            return tree_map(lambda value: value.cuda() if isinstance(value, torch.Tensor) else value, values)
        generator = kwargs.get("generator")
        if generator is None and torch.Tag.nondeterministic_seeded in function.tags:
            generator = default_generator() if recording is None else recording.default
        draw = Draw(generator, recording) if generator is not None else None
        result = function(*args, **kwargs)  # finds the memory, launches kernels that do nothing
        outside = [places(value) for value in tree_flatten(result)[0] if isinstance(value, torch.Tensor)]
        if draw is not None:
            draw.after(function, outside[0])
        operation = Operation(function, *inside, outside if schema.returns else [], draw)
        operation() if recording is None else recording.operations.append(operation)
        return result


def crosses(packet, args, kwargs):
    """Tell whether an operation copies from or to the host, which the runtime does itself."""
    if packet is aten.copy_:
        return args[0].device != args[1].device
    if packet is aten._to_copy:
        crossing = torch.device(kwargs.get("device") or args[0].device).type != args[0].device.type
        assert not crossing or kwargs.get("dtype") in (None, args[0].dtype), "to another device and another type"
        return crossing
    return False


def written(schema, args, kwargs):
    """Return the places that an operation writes to besides its results."""
    names = {argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write}
    given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | kwargs
    trees = [value for name, value in given.items() if name in names]
    return [leaf for leaf in tree_flatten(trees, is_leaf=is_place)[0] if is_place(leaf)]


def computed(function, args, kwargs):
    """Return what an operation gives on the host."""
    with torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowAutograd():
        args, kwargs = for_host((args, kwargs))
        return BY_HAND.get(function.overloadpacket, function)(*args, **kwargs)


class Operation:
    """What a kernel would compute, at which addresses."""

    def __init__(self, function, args, kwargs, results, draw):
        self.function, self.args, self.kwargs, self.results, self.draw = function, args, kwargs, results, draw
        self.grad = torch.is_grad_enabled()  # some operations look at it

    def __call__(self):
        writes = [*written(self.function._schema, self.args, self.kwargs), *self.results]
        for leaf in tree_flatten((self.args, self.kwargs), is_leaf=is_place)[0]:
            if is_place(leaf):
                leaf.note(self.function, writes=False)
        for place in writes:
            place.note(self.function, writes=True)
        before = torch.get_rng_state()
        if self.draw is not None:
            torch.set_rng_state(self.draw.on_host().get_state())
        kwargs = {name: None if name == "generator" else value for name, value in self.kwargs.items()}
        try:
            with torch.set_grad_enabled(self.grad):
                values = computed(self.function, self.args, kwargs)
        finally:
            torch.set_rng_state(before)
        found = [value for value in tree_flatten(values)[0] if isinstance(value, torch.Tensor)]
        with torch._C._DisableTorchDispatch(), torch.no_grad():
            for place, value in zip(self.results, found, strict=not self.draw) if self.results else ():
                target = place.view()
                if target.numel() == value.numel() and target.data_ptr() != value.data_ptr():
                    target.copy_(value)


def state(generator):
    """Return the seed and the offset of a generator of the device."""
    found = generator.get_state().numpy().tobytes()
    return int.from_bytes(found[:8], "little"), int.from_bytes(found[8:16], "little")


def default_generator():
    return torch.cuda.default_generators[torch.cuda.current_device()]


# How far a generator goes on, by the operation that draws and the shape.
advances = {}


class Draw:
    """What an operation draws: a function of its generator's seed and offset, as on a GPU.

    Args:
        generator: of the device.
        recording: None if the operation is not captured.
    """

    def __init__(self, generator, recording):
        self.generator, self.recording = generator, recording
        self.start = state(generator) if recording is None else recording.drawn.get(generator, 0)

    def after(self, function, result):
        """Note how far the generator has gone on; during a capture it does not say."""
        key = function, result.shape
        if self.recording is None:
            advances[key] = state(self.generator)[1] - self.start[1]
        else:
            self.recording.drawn[self.generator] = self.start + advances[key]

    def on_host(self):
        """Return a generator of the host that draws it."""
        seed, offset = self.start if self.recording is None else self.recording.starts[self.generator]
        offset += 0 if self.recording is None else self.start
        return torch.Generator().manual_seed((seed * 1_000_003 + offset) % 2**63)


class Recording:
    """The operations of a graph.

    Attributes:
        current: of the capture that is under way.
        drawn: by generator, how far its offset goes on in a replay.
        starts: by generator, its seed and offset at the beginning of a replay.
    """

    current = None

    def __init__(self):
        self.operations, self.drawn, self.starts = [], {}, {}
        self.default = default_generator().graphsafe_get_state()  # it may be another one when the graph is replayed

    def replay(self):
        for operation in self.operations:
            operation()


class Graph(torch.cuda.CUDAGraph):
    """PyTorch's graph, which launches nothing, with the operations that it stands for."""

    def capture_begin(self, *args, **kwargs):
        super().capture_begin(*args, **kwargs)
        self.recording = Recording.current = Recording()

    def replay(self):
        recording = self.recording
        recording.starts = {generator: state(generator) for generator in recording.drawn}
        super().replay()
        for generator, (_, offset) in recording.starts.items():
            assert state(generator)[1] == offset + recording.drawn[generator]
        recording.replay()


def lstm_cell(inputs, hidden, cell, input_bias=None, hidden_bias=None):
    gates = inputs + hidden + (0 if input_bias is None else input_bias + hidden_bias)
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    after = f * cell + i * g
    return o * after.tanh(), after, torch.cat([i, f, g, o], 1)


def lstm_cell_backward(of_hidden, of_cell, before, after, gates, has_bias):
    i, f, g, o = gates.chunk(4, 1)
    of_hidden, of_cell = (torch.zeros_like(after) if given is None else given for given in (of_hidden, of_cell))
    squashed = after.tanh()
    of_cell = of_cell + of_hidden * o * (1 - squashed**2)
    parts = of_cell * g * i * (1 - i), of_cell * before * f * (1 - f), of_cell * i * (1 - g**2)
    of_gates = torch.cat([*parts, of_hidden * squashed * o * (1 - o)], 1)
    return of_gates, of_cell * f, of_gates.sum(0)


# A CPU has no such operations.
BY_HAND = {
    aten._thnn_fused_lstm_cell: lstm_cell,
    aten._thnn_fused_lstm_cell_backward_impl: lstm_cell_backward,
}
