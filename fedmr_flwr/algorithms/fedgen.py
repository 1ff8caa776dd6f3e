"""FedGen: FedAvg whose server trains a generator of representations with the clients' heads and sends it to clients.

Source: Zhu et al., "Data-Free Knowledge Distillation for Heterogeneous Federated Learning", ICML 2021, algorithm 1;
losses, network and numbers as in the code published with FedMR: the generator's loss is that of each head alone,
weighted by its client's share of a label, where equation 4 has one loss of the averaged logits. The defaults are
those for CIFAR-10; docs/guides/strategies.md lists others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from fedmr_flwr.algorithms.base import Algorithm
from fedmr_flwr.algorithms.contract import Combined, Round, Slot, StateArrays
from fedmr_flwr.algorithms.fedavg import FedAvgOptions
from fedmr_flwr.algorithms.weighting import weighted_mean
from fedmr_flwr.config.sections import Section
from fedmr_flwr.core.distributions import LogUniform
from fedmr_flwr.core.layout import Floats, Layout, Packed
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.models import layers
from fedmr_flwr.models.base import drawing_from
from fedmr_flwr.models.packing import layout_of, pack, unpack
from fedmr_flwr.models.parts import ends_with, last_layer
from fedmr_flwr.training.devices import threads
from fedmr_flwr.training.rules import LocalRule, Outcome, Task

GENERATOR, COUNTS = "generator", "label-counts"
_NOISE, _HIDDEN = 100, 512
_BATCH, _WEIGHT_DECAY = 128, 0.01


# [K, C, D] weights and [K, C] biases.
Heads = tuple[torch.Tensor, torch.Tensor]


class Generator(nn.Module):
    """Generates representations of given labels from noise.

    Args:
        classes: number of labels.
        width: D, the width of a representation.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.hidden = nn.Linear(_NOISE + classes, _HIDDEN)
        self.norm = nn.BatchNorm1d(_HIDDEN)
        self.output = nn.Linear(_HIDDEN, width)

    def forward(self, labels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Map [B] labels and [B, 100] noise to [B, D] representations."""
        # Not `one_hot`, which reads the labels on the host and so waits for the device.
        given = (labels[:, None] == torch.arange(self.classes, device=labels.device)).to(noise.dtype)
        return self.output(torch.relu(self.norm(self.hidden(torch.cat([noise, given], 1)))))  # type: ignore[no-any-return]


def diversity(noise: torch.Tensor, representations: torch.Tensor) -> torch.Tensor:
    """Return a loss that is 1 if all representations are equal, and smaller the more they differ for different noise.

    Args:
        noise: [B, E].
        representations: [B, D] generated from it.

    Returns:
        exp(-mean over all ordered pairs of mean((e_i - e_j)^2) mean(|z_i - z_j|)).
    """
    apart = torch.cdist(representations, representations, p=1) / representations.shape[1]
    noisy = torch.cdist(noise, noise).square() / noise.shape[1]
    return torch.exp(-(noisy * apart).mean())


def generator_loss(
    representations: torch.Tensor,
    labels: torch.Tensor,
    heads: Heads,
    shares: torch.Tensor,
) -> torch.Tensor:
    """Return the loss of the clients' heads on generated representations.

    Args:
        representations: [B, D].
        labels: [B], their labels.
        heads: [K, C, D] weights and [K, C] biases.
        shares: [K, C], client k's share of the round's examples of a label.

    Returns:
        The cross-entropy of each head, weighted by its client's share of the label, summed over clients, mean over
        the batch.
    """
    weights, biases = heads
    # All heads in one product: K separate ones for each of the generator's steps would take K times as long.
    logits = torch.einsum("bd,kcd->kbc", representations, weights) + biases[:, None]
    losses = functional.cross_entropy(logits.flatten(0, 1), labels.repeat(len(weights)), reduction="none")
    return (losses.view(len(weights), -1) * shares[:, labels]).sum(0).mean()


class GuidedOptions(Section):
    """Options of FedGen's local rule.

    Attributes:
        alpha: weight of the cross-entropy on generated representations.
        beta: weight of the divergence of the model's prediction for an example from its prediction for a
            generated representation of the same label.
    """

    alpha: Annotated[float, LogUniform(0.1, 10)] = Field(0.2, ge=0)
    beta: Annotated[float, LogUniform(0.1, 10)] = Field(0.2, ge=0)


class GuidedState(NamedTuple):
    """The server's generator, in evaluation mode, and the random generator of its labels and noise."""

    generator: Generator
    draws: torch.Generator


class Guided(LocalRule):
    """Adds two terms to the cross-entropy, with the head h of the trained model and the generator G.

    alpha times the cross-entropy of h(G(y')) for as many random labels y' as there are examples in the batch, and
    beta times the Kullback-Leibler divergence of softmax(h(f(x))) from softmax(h(G(y))), which is held fixed, mean
    over the batch. The generator is in evaluation mode and does not change. Without a generator, that is, in the
    first round, both terms are missing.

    Returned to the server: the number of the client's examples of each label.
    """

    options: GuidedOptions
    exchanges = (GENERATOR, COUNTS)

    def begin(self, model: nn.Module, task: Task) -> GuidedState | None:
        """Load the generator; None if there is none, or if both weights are 0."""
        weights = task.received.get(GENERATOR)
        if weights is None or not (self.options.alpha or self.options.beta):
            return None
        # The sizes are those of the last layer, so that the generator fits any model without further options.
        layer, device = _last(model), task.labels.device
        generator = _new_generator(layer.out_features, layer.in_features, task.rng)
        _load(generator, weights)
        generator.to(device).eval().requires_grad_(False)
        return GuidedState(generator, torch.Generator(device).manual_seed(int(task.rng.integers(2**63))))

    def forward(
        self, model: nn.Module, state: GuidedState | None, inputs: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the logits and the sum of both terms."""
        layer = _last(model)
        logits = ends_with(model, layer, inputs)
        if state is None:
            return logits, None
        others = torch.randint(layer.out_features, labels.shape, generator=state.draws, device=labels.device)
        taught = functional.cross_entropy(layers.apply(layer, _generate(state, others)), others)
        with torch.no_grad():
            # Held fixed: the head must not lower this term by changing its target.
            wanted = layers.apply(layer, _generate(state, labels)).softmax(1)
        pulled = functional.kl_div(logits.log_softmax(1), wanted, reduction="batchmean")
        return logits, self.options.alpha * taught + self.options.beta * pulled

    def end(self, model: nn.Module, state: GuidedState | None, task: Task, steps: int) -> Outcome:
        """Return the label counts."""
        counts = torch.bincount(task.labels, minlength=_last(model).out_features)
        return Outcome(returned={COUNTS: counts.numpy(force=True).astype(np.float32)})


def _last(model: nn.Module) -> nn.Linear:
    layer = model.get_submodule(last_layer(model))
    assert isinstance(layer, nn.Linear)  # the server has refused other models
    return layer


def _generate(state: GuidedState, labels: torch.Tensor) -> torch.Tensor:
    """Generate a representation of each of [B] labels, [B, D]."""
    noise = torch.randn(len(labels), _NOISE, generator=state.draws, device=labels.device)
    return state.generator(labels, noise)  # type: ignore[no-any-return]


class FedGenOptions(FedAvgOptions):
    """Options of FedGen.

    Attributes:
        generator_lr: learning rate of the generator, by Adam.
        generator_steps: its training steps in a round.
        diversity: weight of its diversity loss.
    """

    generator_lr: float = Field(0.0003, gt=0)
    generator_steps: int = Field(50, ge=1)
    diversity: float = Field(1.0, ge=0)


@dataclass(frozen=True)
class FedGenState:
    """The state of FedGen.

    Attributes:
        generator: its weights and BatchNorm's statistics; None before the first good round.
    """

    generator: Floats | None

    def arrays(self) -> StateArrays:
        """Return the generator, if there is one."""
        return {} if self.generator is None else {GENERATOR: self.generator}

    @classmethod
    def from_arrays(cls, arrays: StateArrays) -> Self:
        """Restore the generator."""
        return cls(arrays[GENERATOR])


class FedGen(Algorithm[FedGenState]):
    """Federated averaging with a generator that is trained on the server.

    Its labels are drawn uniformly from those of the round's clients. It is trained on the CPU with one
    thread, so that it is the same everywhere. The model's last layer must be a Linear with a bias.

    Clients are weighted by examples, as in its published code and in FedMR's.

    For the arguments see `FedGenOptions` and `Algorithm`.
    """

    options: FedGenOptions
    Rule = Guided

    def init(self, layout: Layout, slots: int) -> FedGenState:
        """Find the last layer, [C, D] weights and [C] biases; start without a generator."""
        found = {entry.name: entry for entry in layout.entries}
        names = [f"{layout.head}.{tensor}" for tensor in ("weight", "bias")]
        if not all(name in found for name in names):
            raise ConfigError("fedgen needs a model whose last layer is a Linear with bias and weights of its own")
        self._head = found[names[0]], found[names[1]]
        return FedGenState(None)

    def models(self, round: Round) -> Sequence[Packed]:
        """Send the global model to everyone."""
        return [round.global_model] * self.slots

    def sends(self) -> Mapping[str, Floats]:
        """Send the generator, if there is one."""
        return {} if self.state.generator is None else {GENERATOR: self.state.generator}

    def returns(self) -> Mapping[str, int]:
        """Request the label counts."""
        return {COUNTS: self._head[0].shape[0]}

    def combine(self, round: Round, slots: Sequence[Slot]) -> Combined[FedGenState]:
        """Average the trained models, and train the generator on their heads."""
        good = [slot.reply for slot in slots if slot.reply]
        heads = [
            torch.from_numpy(np.stack([r.model.floats[entry.columns].reshape(entry.shape) for r in good])).float()
            for entry in self._head
        ]
        # Clients may return anything: a negative count would make a negative weight of the loss.
        counts = torch.from_numpy(np.stack([reply.vectors[COUNTS] for reply in good])).clamp(min=0)
        classes, width = self._head[0].shape
        # From the seed without the round: every round starts from the same network before the state is loaded.
        generator = _new_generator(classes, width, stream(self.seed, "generator"))
        if self.state.generator is not None:
            _load(generator, self.state.generator)
        draws = torch.Generator().manual_seed(int(round.stream("generate").integers(2**63)))
        # On the CPU with one thread: it is small, and gives the same bits everywhere.
        with threads(1):
            loss = _train_generator(generator, (heads[0], heads[1]), counts, self.options, draws)
        state = FedGenState(pack(generator, layout_of(generator)).floats)
        return Combined(weighted_mean(slots, self.options.weighting), state, {"generator-loss": loss})


def _new_generator(classes: int, width: int, rng: np.random.Generator) -> Generator:
    with drawing_from(rng):
        return Generator(classes, width)


def _load(generator: Generator, weights: Floats) -> None:
    """Overwrite a generator; the counters of its BatchNorm have no effect and are not sent."""
    layout = layout_of(generator)
    unpack(Packed(weights, np.zeros(layout.counters, np.int64)), layout, generator)


def _train_generator(
    generator: Generator,
    heads: Heads,
    counts: torch.Tensor,
    options: FedGenOptions,
    draws: torch.Generator,
) -> float:
    """Train a generator in place on the heads of a round; return its mean loss."""
    held = torch.nonzero(counts.sum(0)).flatten()
    if not len(held):  # clients may report that they have no examples
        return 0.0
    shares = counts / counts.sum(0).clamp(min=1)
    # New in every round, as in the published code, so that none of its state has to be kept.
    optimizer = torch.optim.Adam(generator.parameters(), options.generator_lr, weight_decay=_WEIGHT_DECAY)
    generator.train()
    total = 0.0
    for _ in range(options.generator_steps):
        labels = held[torch.randint(len(held), (_BATCH,), generator=draws)]
        noise = torch.randn(_BATCH, _NOISE, generator=draws)
        made = generator(labels, noise)
        loss = generator_loss(made, labels, heads, shares) + options.diversity * diversity(noise, made)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item()
    return total / options.generator_steps
