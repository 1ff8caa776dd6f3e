"""Lanes whose steps are captured as CUDA graphs and replayed, each lane on its own stream.

Launching the kernels of a small model's step takes the host several times as long as the GPU needs to run them. A
graph is launched as a whole, and graphs of several lanes run side by side.

The steps are not compiled first (`torch.compile`): its operations give other bits than eager ones, and
take long to compile.
"""

from contextlib import suppress
from typing import Any
from weakref import WeakSet

import torch

from fedmr_flwr.errors import EngineError
from fedmr_flwr.gpu import states
from fedmr_flwr.gpu.lanes import ResidentLane
from fedmr_flwr.models import layers
from fedmr_flwr.training.devices import default_generators, is_out_of_memory
from fedmr_flwr.training.optimizers import Optimizer
from fedmr_flwr.training.schedule import Batch

# The number of streams that PyTorch has; it returns them in turn.
STREAMS = 32
# About how many pieces the weights are updated in, and the fewest values of one. With a smaller one at the end of
# each tensor they are fewer than the 48 that a kernel of PyTorch 2.11 takes.
_PIECES, _SHORTEST_PIECE = 36, 2048


class GraphLane(ResidentLane):
    """A lane on a CUDA device.

    The first batch of a size is trained without capture, which also initialises what CUDA sets up at its first use.
    With the second one the step is captured, and from then on replayed. Each size has its own graph, so that a last,
    smaller batch is trained at its true size.

    Args:
        **arguments: of `ResidentLane`.
    """

    def __init__(self, **arguments: Any) -> None:
        self._graphs: dict[tuple[states.Kind, int], torch.cuda.CUDAGraph | None] = {}
        device = arguments["examples"].labels.device
        self._stream = _unused_stream(device)
        # All graphs, failed ones included. When a graph is destroyed, PyTorch frees cuBLAS's workspace on its stream,
        # but the lane's other graphs still use it.
        self._begun: list[torch.cuda.CUDAGraph] = []
        # The graphs of a lane share their memory: they never run at the same time, and pass nothing on in it.
        self._pool = torch.cuda.graph_pool_handle()
        super().__init__(**arguments)
        _living.add(self)

    def _ready(self) -> None:
        """Let the steps run after everything launched so far."""
        self._outer = torch.cuda.current_stream()
        self._stream.wait_stream(self._outer)

    def step(self) -> bool:
        """Train on the next batch, on the lane's own stream; return whether one was left."""
        # Not with torch.cuda.stream: it queries the device so often that it takes longer than launching a graph.
        torch.cuda.set_stream(self._stream)
        try:
            return self._step()
        finally:
            torch.cuda.set_stream(self._outer)

    def _finished(self) -> None:
        """Let everything launched from now on run after the steps."""
        self._outer.wait_stream(self._stream)

    def _run(self, size: int) -> None:
        """Train on the next batch: first without capture, then capturing the step, then replaying it."""
        key = self._kind, size
        graph = self._graphs.get(key)
        if graph is None:
            # Only here, because it takes time: a replay draws from the generator that was the default at the capture.
            with default_generators(self._generators):
                if not self._rule.capturable or key not in self._graphs:
                    self._graphs[key] = None
                    return self._train_batch(size)
                graph = self._graphs[key] = self._capture(size)
        return graph.replay()

    def _capture(self, size: int) -> torch.cuda.CUDAGraph:
        """Capture the step of the next batch, which does not run it."""
        try:
            return self._try_capture(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # During a capture PyTorch does not release the memory in its cache.
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return self._try_capture(size)

    def _try_capture(self, size: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self._begun.append(graph)
        # Later versions find them themselves, and warn about this call.
        if torch.__version__ < (2, 14):  # type: ignore[operator]
            for generator in states.generators(self._state):
                graph.register_generator_state(generator)
        on_host = torch.get_rng_state()
        # Not with torch.cuda.graph: it waits until the GPU has finished everything launched so far.
        graph.capture_begin(self._pool)
        try:
            self._train_batch(size)
        except BaseException as error:
            with suppress(RuntimeError):  # it would only report the failed step again
                graph.capture_end()
            if is_out_of_memory(error) or not isinstance(error, Exception):
                raise
            raise EngineError(
                f"a step of {type(self._rule).__name__} cannot be captured ({error}); if it waits for the device, "
                "set capturable = False"
            ) from error
        graph.capture_end()
        if not torch.equal(torch.get_rng_state(), on_host):
            raise EngineError(
                "the model draws random numbers on the CPU, and every replay of a captured step would use the same; "
                "draw on the device of the inputs, or use engine=in-process"
            )
        return graph

    def _make_optimizer(self) -> Optimizer:
        """Create an optimiser that updates the weights in pieces."""
        # PyTorch's kernel updates each tensor of up to 65,536 values by one block of threads, while the other
        # multiprocessors wait. Pieces are updated side by side, to the same bits.
        weights = [_in_memory_order(parameter.detach()) for parameter in self.model.parameters()]
        length = max(_SHORTEST_PIECE, sum(map(len, weights)) // _PIECES)
        self._pieces = [torch.split(vector, length) for vector in weights]
        every = [piece for pieces in self._pieces for piece in pieces]
        return Optimizer(every, self._training, captured=True)

    def _update(self) -> None:
        """Change the weights by their gradients."""
        gradients: list[torch.Tensor | None] = []
        for parameter, pieces in zip(self.model.parameters(), self._pieces, strict=True):
            gradient = parameter.grad
            if gradient is None:
                gradients += [None] * len(pieces)
                continue
            if gradient.stride() != parameter.stride():
                gradient = torch.empty_like(parameter).copy_(gradient)
            gradients += torch.split(_in_memory_order(gradient), len(pieces[0]))
        self._optimizer.step(gradients)

    def _next_batch(self, size: int) -> Batch:
        if self._changes is not None or layers.missing(self._device):
            return super()._next_batch(size)
        from fedmr_flwr.gpu.fetch import fetch

        inputs, labels = fetch(self._examples, self._order, self._cursor, size)
        self._cursor += size
        return Batch(inputs, labels)

    def _forget(self) -> None:
        super()._forget()
        self._graphs.clear()
        self._begun.clear()
        self._pool = torch.cuda.graph_pool_handle()  # a pool without graphs cannot be used again

    def close(self) -> None:
        """Wait until everything that the lane has launched has finished."""
        self._stream.synchronize()


def _in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values of a tensor without gaps as a vector, which shares its memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


# Weak references, so that a dropped lane frees its memory and its stream.
_living: "WeakSet[GraphLane]" = WeakSet()


def _unused_stream(device: torch.device) -> Any:
    """Return a stream that no other lane uses."""
    # Not shared: destroying a graph of one lane would free cuBLAS's workspace for the other.
    used = {lane._stream for lane in _living}
    for _ in range(STREAMS):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        if stream not in used:
            return stream
    raise EngineError(f"PyTorch has only {STREAMS} CUDA streams, and all are in use")
