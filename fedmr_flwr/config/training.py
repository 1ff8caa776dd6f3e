"""The section `training`, and the precision of arithmetic."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from fedmr_flwr.config.sections import Section, Void, wrong_value
from fedmr_flwr.core.distributions import Around, LogUniform

Precision = Literal["float32", "tf32", "bf16"]
Schedule = Literal["constant", "step", "exponential", "cosine", "inverse"]

# A whole number stays one, so that it is written as 5 and not as 5.0.
Epochs = Annotated[float, AfterValidator(lambda epochs: int(epochs) if epochs.is_integer() else epochs)]

# The local epochs where nothing is said of epochs or steps.
_EPOCHS = 5
_BETAS = (0.9, 0.999)
# The options of the schedules, and those of them without which a schedule cannot be computed.
_OPTIONS = {
    "constant": (),
    "step": ("decay", "decay-rounds"),
    "exponential": ("decay",),
    "cosine": ("decay-rounds", "final-lr"),
    "inverse": ("decay-rounds",),
}
_NEEDED = {"step": ("decay", "decay-rounds"), "exponential": ("decay",)}
_STRAGGLERS = re.compile(r"stragglers:(\d*\.?\d+)")


class Training(Section):
    """Local training on the client's own data.

    Attributes:
        lr: learning rate; with a schedule, the highest one.
        optimizer: PyTorch's; its state starts from zero in every round.
        momentum: of `sgd`; the others do not use it.
        nesterov: of `sgd`: whether a step looks ahead along the momentum.
        betas: of `adam` and `adamw`, the decay of the means of gradients and of their squares.
        weight_decay: times the weights, is added to the gradient; with `adamw`, subtracted from the weights beside
            it.
        schedule: of the learning rate, by round, after the warm-up.
        warmup_rounds: the rounds in which the learning rate rises in equal steps, before the schedule begins.
        decay: of `step` and `exponential`: the factor.
        decay_rounds: of `step`: the rounds between two steps; of `cosine`: the rounds until the end, by default those
            of the run; of `inverse`: the rounds until half, by default 1, which is lr / t.
        final_lr: of `cosine`: the learning rate at its end.
        clip_norm: the longest gradient of a step, all parameters together; longer ones are scaled to it.
        label_smoothing: the share of each label that is spread over all classes in the loss.
        local_epochs: passes over the client's data in a round, 5 by default; a fraction is rounded to whole steps, at
            least one. Not used if `local-steps` is given.
        local_steps: the steps of a client in a round, instead of epochs.
        work: `full`, or `stragglers:P`: in each round a client is a straggler with the probability P, and does a
            number of local epochs, or of local steps, that is drawn uniformly from 1 to all.
        batch_size: examples in a step; the last batch of an epoch may be smaller. Where BatchNorm gets a single value
            for a channel, as from a batch of one example, it normalises by its running statistics, as in evaluation.
        augment: whether to shift each image by up to an eighth of its size and to flip half of the images,
            differently in each epoch.
    """

    lr: Annotated[float, Around(10)] = Field(0.01, gt=0)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    # Below 1: at 1 the steps would grow without limit, and SCAFFOLD divides by the difference.
    momentum: float = Field(0.5, ge=0, lt=1)
    nesterov: bool = False
    betas: tuple[float, float] = _BETAS
    weight_decay: Annotated[float, LogUniform(1e-5, 1e-2)] = Field(0.0, ge=0)
    schedule: Schedule = "constant"
    warmup_rounds: int = Field(0, ge=0)
    decay: float | None = Field(None, gt=0, lt=1)
    decay_rounds: int | None = Field(None, ge=1)
    final_lr: float = Field(0.0, ge=0)
    clip_norm: float | None = Field(None, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    local_epochs: Epochs | None = Field(None, gt=0)
    local_steps: int | None = Field(None, ge=1)
    work: str = "full"
    batch_size: int = Field(50, ge=1)
    augment: bool = False

    @field_validator("betas")
    @classmethod
    def _are_betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("both must be at least 0 and below 1")
        return betas

    @field_validator("work")
    @classmethod
    def _is_work(cls, work: str) -> str:
        match = _STRAGGLERS.fullmatch(work)
        if work != "full" and not (match and 0 < float(match[1]) <= 1):
            raise ValueError("write full, or stragglers:P with a probability above 0 and at most 1")
        return work

    @model_validator(mode="before")
    @classmethod
    def _epochs_or_steps(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        epochs, steps = (
            next((values[key] for key in (f"local-{what}", f"local_{what}") if key in values), None)
            for what in ("epochs", "steps")
        )
        if epochs is not None and steps is not None:
            raise wrong_value(
                "local-steps", steps, "training.local-epochs is given, too; leave one out, or set it to null"
            )
        if epochs is None and steps is None:
            values = {key: value for key, value in values.items() if key != "local_epochs"}
            values["local-epochs"] = _EPOCHS
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.optimizer == "adamw" and not self.weight_decay:
            raise wrong_value(
                "optimizer", "adamw", "it needs training.weight-decay, without which it is adam; PyTorch's is 0.01"
            )
        self._check_schedule()
        most = self.local_steps or self.local_epochs or 0
        if self.straggling and (most < 2 or most != int(most)):
            raise wrong_value(
                "work",
                self.work,
                "it draws whole epochs or steps, from 1 to all; set training.local-epochs or training.local-steps to "
                "a whole number of 2 or more",
            )
        return self

    def _check_schedule(self) -> None:
        """Check that a schedule has the options that it needs."""
        given = {"decay": self.decay, "decay-rounds": self.decay_rounds}
        for name in _NEEDED.get(self.schedule, ()):
            if given[name] is None:
                raise wrong_value("schedule", self.schedule, f"{self.schedule} needs training.{name}")
        if self.final_lr > self.lr:
            raise wrong_value("final-lr", self.final_lr, f"it is above training.lr = {self.lr:g}; lower it")

    def void(self) -> Iterator[Void]:
        """Yield the options of other optimisers and schedules."""
        by_optimizer = {"momentum": ("sgd",), "nesterov": ("sgd",), "betas": ("adam", "adamw")}
        by_schedule = {
            option: tuple(known for known, options in _OPTIONS.items() if option in options)
            for option in ("decay", "decay-rounds", "final-lr")
        }
        for choice, value, options in (
            ("optimizer", self.optimizer, by_optimizer),
            ("schedule", self.schedule, by_schedule),
        ):
            for option, users in options.items():
                if value not in users:
                    problem = (
                        f"training.{choice}={value} does not use it; leave it out, or choose {' or '.join(users)}"
                    )
                    yield Void(option, (choice,), problem)
        if self.optimizer == "sgd" and not self.momentum:
            yield Void("nesterov", ("momentum",), "it needs training.momentum above 0")

    def over(self, rounds: int) -> "Training":
        """Return the training of a run: a cosine whose length is not given ends with the run.

        Args:
            rounds: of the run.
        """
        if self.schedule != "cosine" or self.decay_rounds:
            return self
        return self.model_copy(update={"decay_rounds": max(1, rounds - self.warmup_rounds)})

    @property
    def straggling(self) -> float:
        """The probability that a client is a straggler in a round."""
        match = _STRAGGLERS.fullmatch(self.work)
        return float(match[1]) if match else 0.0

    @property
    def varies(self) -> bool:
        """Whether the learning rate differs between rounds."""
        return self.schedule != "constant" or self.warmup_rounds > 0
