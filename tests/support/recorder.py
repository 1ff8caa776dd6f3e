"""A lane that records what a step does to tensors and replays it without Python, as a CUDA graph does, on a CPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fedmr_flwr.gpu.lanes import ResidentLane

aten = torch.ops.aten
# What needs a number of the device on the host, or copies one to it that no replay copies again.
WAITING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.lift_fresh}


class Recording(TorchDispatchMode):
    """The operations of a step, on tensors that keep their places and on those that the step itself makes.

    What happens in Python beside them, a branch or an attribute that is replaced, is the same in every replay.
    """

    def __init__(self):
        super().__init__()
        self.calls = []  # with their tensors, so that none loses its place

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket in WAITING:
            raise RuntimeError(f"a step waits for the device: {func}")
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result, torch.is_grad_enabled()))
        return result

    def replay(self):
        """Do the same again in the same places."""
        for func, args, kwargs, result, grad in self.calls:
            with torch._C._AutoDispatchBelowAutograd(), torch.set_grad_enabled(grad):  # some kernels look at it
                again = func(*args, **kwargs)
                for place, now in zip(tensors_in(result), tensors_in(again), strict=True):
                    if place.untyped_storage().data_ptr() != now.untyped_storage().data_ptr():
                        place.copy_(now)


def tensors_in(tree):
    found = []
    tree_map_only(torch.Tensor, found.append, tree)
    return found


class RecordedLane(ResidentLane):
    """As `GraphLane`: the first batch of a size as it is, the second recorded, and from then on replayed."""

    replays = 0

    def __init__(self, **arguments):
        self._recordings = {}
        super().__init__(**arguments)

    def _run(self, size):
        key = self._kind, size
        if not self._rule.capturable:
            self._train_batch(size)
        elif key not in self._recordings:
            self._recordings[key] = None
            self._train_batch(size)
        elif self._recordings[key] is None:
            with Recording() as recording:
                self._train_batch(size)
            self._recordings[key] = recording
        else:
            self._recordings[key].replay()
            type(self).replays += 1

    def _forget(self):
        super()._forget()
        self._recordings.clear()
