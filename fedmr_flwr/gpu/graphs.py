"""Lanes whose steps are captured as CUDA graphs and replayed, each lane on a stream of its own.

Launching the kernels of a small model's step takes the host several times as long as the GPU needs to run them. A
graph is launched as a whole, and graphs of several lanes run side by side.
"""

from contextlib import suppress
from typing import Any
from weakref import WeakSet

import torch

from fedmr_flwr.client.app import TrainRequest
from fedmr_flwr.errors import EngineError
from fedmr_flwr.gpu import states
from fedmr_flwr.gpu.lanes import ResidentLane
from fedmr_flwr.training.devices import default_generator, is_out_of_memory
from fedmr_flwr.training.lane import TrainResult

# So many PyTorch has; it hands them out in turn.
STREAMS = 32


class GraphLane(ResidentLane):
    """A lane on a CUDA device.

    The first batch of a size is trained as it is; that warms up what CUDA sets up at first use, too. With the second
    one the step is captured, and from then on replayed. Each size has a graph of its own, so that a last, smaller
    batch is trained at its true size.

    Args:
        **arguments: of `ResidentLane`.
    """

    def __init__(self, **arguments: Any) -> None:
        self._graphs: dict[tuple[states.Kind, int], torch.cuda.CUDAGraph | None] = {}
        device = arguments["examples"].labels.device
        self._stream = _unused_stream(device)
        # All that were begun. When a graph goes, PyTorch frees what cuBLAS works with on its stream, and the lane's
        # other graphs would go on using it.
        self._begun: list[torch.cuda.CUDAGraph] = []
        # The graphs of a lane share their memory: they never run at the same time, and hand nothing on in it.
        self._pool = torch.cuda.graph_pool_handle()
        super().__init__(**arguments)
        _living.add(self)

    def take(self, client: TrainRequest) -> None:
        """Take a client; its steps come after all that the device has been asked for so far."""
        super().take(client)
        self._outer = torch.cuda.current_stream()
        self._stream.wait_stream(self._outer)

    def step(self) -> bool:
        """Train on the next batch, on the lane's own stream; return whether there was one left."""
        # Not with torch.cuda.stream: that asks for the device so often that it takes longer than to launch a graph.
        torch.cuda.set_stream(self._stream)
        try:
            return self._step()
        finally:
            torch.cuda.set_stream(self._outer)

    def end(self) -> TrainResult:
        """Return what the training did, after its last step."""
        self._outer.wait_stream(self._stream)
        return super().end()

    def _run(self, size: int) -> None:
        """Train on the next batch: as it is, then capturing the step, then replaying it."""
        key = self._kind, size
        graph = self._graphs.get(key)
        if graph is None:
            # Only here, as it takes time: a replay draws from the generator that was the default one at the capture.
            with default_generator(self._generator):
                if not self._rule.capturable or key not in self._graphs:
                    self._graphs[key] = None
                    return self._train(size)
                graph = self._graphs[key] = self._capture(size)
        return graph.replay()

    def _capture(self, size: int) -> torch.cuda.CUDAGraph:
        """Record the step of the next batch, which does not run it."""
        try:
            return self._try_capture(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # During a capture PyTorch does not give back what it keeps for later.
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return self._try_capture(size)

    def _try_capture(self, size: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self._begun.append(graph)
        if torch.__version__ < (2, 14):  # type: ignore[operator]  # later versions find them and warn
            for generator in states.generators(self._state):
                graph.register_generator_state(generator)
        # Not with torch.cuda.graph: that waits until the GPU has done all that it has been asked for.
        graph.capture_begin(self._pool)
        try:
            self._train(size)
        except BaseException as error:
            with suppress(RuntimeError):  # it would only repeat that the step failed
                graph.capture_end()
            if is_out_of_memory(error) or not isinstance(error, Exception):
                raise
            raise EngineError(
                f"a step of {type(self._rule).__name__} cannot be captured ({error}); if it waits for the device, "
                "set capturable = False"
            ) from error
        graph.capture_end()
        return graph

    def _forget(self) -> None:
        super()._forget()
        self._graphs.clear()
        self._begun.clear()
        self._pool = torch.cuda.graph_pool_handle()  # one whose graphs have gone cannot be used again

    def close(self) -> None:
        """Wait until nothing runs any more that the lane has begun."""
        self._stream.synchronize()


_living: "WeakSet[GraphLane]" = WeakSet()


def _unused_stream(device: torch.device) -> Any:
    """Return a stream that no other lane has, because of what happens when a graph goes."""
    used = {lane._stream for lane in _living}
    for _ in range(STREAMS):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        if stream not in used:
            return stream
    raise EngineError(f"PyTorch has only {STREAMS} CUDA streams, and all are in use")
