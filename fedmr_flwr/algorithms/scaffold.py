"""SCAFFOLD: FedAvg whose clients correct their steps by the difference of all clients' gradients and their own.

Source: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020,
algorithm 1 with option II.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from fedmr_flwr.algorithms.base import Algorithm
from fedmr_flwr.algorithms.contract import Combined, Round, Slot, StateArrays
from fedmr_flwr.algorithms.weighting import Weighting, client_weights, weighted_mean
from fedmr_flwr.config.sections import Section
from fedmr_flwr.config.training import Training
from fedmr_flwr.core.distributions import Around
from fedmr_flwr.core.layout import Floats, Layout, Packed
from fedmr_flwr.training.rules import LocalRule, Outcome, Task

CONTROL = "control"


class CorrectedState(NamedTuple):
    """The received model, the variates c and c_i, [P] each, and c - c_i in the shapes of the parameters."""

    start: torch.Tensor
    server: torch.Tensor
    own: torch.Tensor
    corrections: tuple[torch.Tensor, ...]


class Corrected(LocalRule):
    """Steps along g - c_i + c, with the control variates c of the server and c_i of this client, zero at first.

    Afterwards c_i becomes c_i - c + (x - y) / (lr a), where x is the received model, y the trained one and a the
    number of steps. With momentum m a step also contributes to later ones: after t steps a is
    (1 - m^1) / (1 - m) + ... + (1 - m^t) / (1 - m), as in FedNova (Wang et al., NeurIPS 2020, section 3), so that
    c_i remains a weighted mean of the client's gradients; division by the number of steps would make it up
    to 1 / (1 - m) times too long. Without momentum a is that number; with Nesterov's each power is one higher.

    The learning rate is the round's own, and the number of steps the client's own, so that schedules and clients
    that do less work fit. Weight decay counts as a part of the gradient. Adam's steps and clipped gradients are not
    sums of gradients, and are refused.
    """

    exchanges = (CONTROL,)
    keeps = True

    @classmethod
    def misfit(cls, training: Training) -> str | None:
        """Refuse everything that makes a step something else than a sum of earlier gradients."""
        if training.optimizer != "sgd":
            return f"training.optimizer={training.optimizer}: its variates are sums of SGD's steps; use sgd"
        if training.clip_norm:
            return "training.clip-norm: its variates would be means of clipped gradients; leave it out"
        return None

    def begin(self, model: nn.Module, task: Task) -> CorrectedState:
        """Read both variates and copy the parameters of the received model."""
        start = _flat(model)
        zeros = np.zeros(len(start), np.float32)
        server, own = (
            torch.tensor(vectors.get(CONTROL, zeros), device=start.device) for vectors in (task.received, task.kept)
        )
        # Once for all steps, in the shapes of the parameters: a step then only adds them.
        trained = _trained(model)
        pieces = torch.split(server - own, [parameter.numel() for parameter in trained])
        shaped = (piece.view_as(parameter) for piece, parameter in zip(pieces, trained, strict=True))
        return CorrectedState(start, server, own, tuple(shaped))

    @torch.no_grad()
    def adjust(self, model: nn.Module, state: CorrectedState) -> None:
        """Add the correction to the gradient."""
        for parameter, correction in zip(_trained(model), state.corrections, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(correction)

    def kept_bytes(self, layout: Layout) -> int:
        """Return the bytes of a variate."""
        return layout.trainable * layout.dtype.itemsize

    def end(self, model: nn.Module, state: CorrectedState, task: Task, steps: int) -> Outcome:
        """Keep the new variate and return its change."""
        m = task.training.momentum
        ahead = int(task.training.nesterov)
        # Without momentum each summand is 1, and the sum is the number of steps, as in the paper.
        weight = sum((1 - m ** (step + ahead)) / (1 - m) for step in range(1, steps + 1))
        change = (state.start - _flat(model)) / (task.training.lr * weight) - state.server
        own = (state.own + change).numpy(force=True)
        return Outcome(returned={CONTROL: change.numpy(force=True)}, kept={CONTROL: own})


def _flat(model: nn.Module) -> torch.Tensor:
    """Copy all trainable parameters into one vector, in the order of the state_dict."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in _trained(model)])


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class ScaffoldOptions(Section):
    """Options of SCAFFOLD.

    Attributes:
        server_lr: the server's step towards the mean of the clients' models; 1 is the mean.
        weighting: of the clients' models and of their variates: `uniform`, as in the paper's algorithm 1, or by their
            `examples`.
    """

    server_lr: Annotated[float, Around(3)] = Field(1.0, gt=0)
    weighting: Weighting = "uniform"


@dataclass(frozen=True)
class ScaffoldState:
    """The state of SCAFFOLD.

    Attributes:
        variate: the server's, over trainable parameters; in double precision, because it is a sum over all rounds.
    """

    variate: NDArray[np.float64]

    def arrays(self) -> StateArrays:
        """Return the variate."""
        return {CONTROL: self.variate}

    @classmethod
    def from_arrays(cls, arrays: StateArrays) -> Self:
        """Restore the variate."""
        return cls(arrays[CONTROL])


class Scaffold(Algorithm[ScaffoldState]):
    """Averaging with control variates.

    From the good replies of a round the server computes x += server_lr mean(y - x) and c += sum p_i (change of c_i),
    with p_i = 1 / N for N clients in all, or by examples, so that c is the mean of all c_i with the weights of the
    models; with others the corrections would not cancel at the optimum. Buffers are averaged.

    For the arguments see `ScaffoldOptions` and `Algorithm`.
    """

    options: ScaffoldOptions
    Rule = Corrected
    guarded = (CONTROL,)

    def init(self, layout: Layout, slots: int) -> ScaffoldState:
        """Start with a variate of zeros."""
        return ScaffoldState(np.zeros(layout.trainable))

    def models(self, round: Round) -> Sequence[Packed]:
        """Send the global model to everyone."""
        client_weights(round, self.options.weighting)  # refused before the first round, not after its training
        return [round.global_model] * self.slots

    def sends(self) -> Mapping[str, Floats]:
        """Send the server's variate."""
        return {CONTROL: self.state.variate.astype(np.float32)}

    def returns(self) -> Mapping[str, int]:
        """Request the change of the client's variate."""
        return {CONTROL: len(self.state.variate)}

    def combine(self, round: Round, slots: Sequence[Slot]) -> Combined[ScaffoldState]:
        """Step towards the mean of the trained models, and add the changes of the clients' variates."""
        good = {slot.client: slot.reply for slot in slots if slot.reply and slot.client is not None}
        model = weighted_mean(slots, self.options.weighting)
        if self.options.server_lr != 1:
            for part in round.layout.parameters:
                # Buffers remain averaged: with a step beyond the mean a variance could become negative.
                before = round.global_model.floats[part].astype(np.float64)
                model.floats[part] = before + self.options.server_lr * (model.floats[part] - before)
        # Divided by the weights of all clients, not of those of the round: the others' variates have not changed.
        shares = client_weights(round, self.options.weighting)
        changes = np.sum([np.float64(shares[at]) * reply.vectors[CONTROL] for at, reply in good.items()], axis=0)
        return Combined(model, ScaffoldState(self.state.variate + changes / shares.sum()))

    def reset(self) -> ScaffoldState:
        """Reset all variates to zero."""
        # With one client's variate lost, the sum of all corrections is no longer zero, and the fixed point moves for
        # good.
        return ScaffoldState(np.zeros_like(self.state.variate))
