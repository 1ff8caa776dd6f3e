"""A slot that records what a step does to tensors and replays it without Python, as a CUDA graph does, on a CPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fedmr_flwr.engines.slots import Slot


class Recording(TorchDispatchMode):
    """The operations of a step, on tensors that keep their places and on those that the step itself makes.

    What happens in Python beside them, a branch or an attribute that is replaced, is the same in every replay.
    """

    def __init__(self):
        super().__init__()
        self.calls = []
        self._kept = []  # so that no identity is used twice

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.ops.aten._local_scalar_dense.default,):
            raise RuntimeError("a step waits for the device")
        result = func(*args, **kwargs)
        self._kept.append((args, kwargs, result))
        self.calls.append((func, args, kwargs, result, torch.is_grad_enabled()))
        return result

    def replay(self):
        made = {}

        def own(tensor):
            return made.get(id(tensor), tensor)

        for func, args, kwargs, result, grad in self.calls:
            args, kwargs = (tree_map_only(torch.Tensor, own, part) for part in (args, kwargs))
            with torch._C._AutoDispatchBelowAutograd(), torch.set_grad_enabled(grad):  # some kernels look at it
                again = func(*args, **kwargs)
            for before, now in zip(tensors_in(result), tensors_in(again), strict=True):
                made[id(before)] = now


def tensors_in(tree):
    found = []
    tree_map_only(torch.Tensor, found.append, tree)
    return found


class RecordedSlot(Slot):
    """As `GraphSlot`: the first batch of a size as it is, the second recorded, and from then on replayed."""

    replays = 0

    def __init__(self, **arguments):
        self._recordings = {}
        super().__init__(**arguments)

    def _run(self, size):
        key = self._kind, size
        if not self._rule.captured:
            self._train(size)
        elif key not in self._recordings:
            self._recordings[key] = None
            self._train(size)
        elif self._recordings[key] is None:
            with Recording() as recording:
                self._train(size)
            self._recordings[key] = recording
        else:
            self._recordings[key].replay()
            type(self).replays += 1

    def _forget(self):
        super()._forget()
        self._recordings.clear()
