"""The schema of a run's configuration."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from fedmr_flwr.config.data import OPTION_KINDS, Data
from fedmr_flwr.config.engines import Deployment, Ray
from fedmr_flwr.config.evaluation import Evaluation
from fedmr_flwr.config.model import Model
from fedmr_flwr.config.partition import Partition
from fedmr_flwr.config.privacy import Privacy
from fedmr_flwr.config.registry import FLOWER
from fedmr_flwr.config.sealed import sealed_problem
from fedmr_flwr.config.sections import AbsolutePath, Section, Void, drop
from fedmr_flwr.config.stop import Stop
from fedmr_flwr.config.strategy import Strategy
from fedmr_flwr.config.training import Precision, Training


def _keys(section: Section) -> Iterator[str]:
    return (str(field.alias) for field in type(section).model_fields.values())


# "every N" rounds.
EveryRounds = Annotated[str, Field(pattern=r"^every [1-9]\d*$")]

# In a deployment, whose clients are other people's. Loose, so that no honest client is above it, whatever its number
# of examples; what destroys a model in one round is hundreds of times as long as the median.
_DEPLOYED_GUARD = 10.0
# A placeholder for the strategy while the rest is checked.
_LATER = Strategy.model_construct(options=Section(), rule_options=Section())


class Settings(Section):
    """The configuration of a run.

    Attributes:
        rounds: communication rounds.
        clients: the number of clients in the federation.
        clients_per_round: the number of clients drawn in a round.
        seed: everything random derives from it.
        device: for training and evaluation: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: of the arithmetic on a GPU: `float32`, deterministic, or the faster `tf32` or `bf16`.
        engine: how clients are run: `ray`, Flower's simulation; `in-process`; `gpu`, all clients of a round side by
            side on one GPU; `deployment`, clients on machines of their own.
        client_cpus: the threads of a client's training, and the CPU cores that it reserves from Ray.
        data_dir: folder of the data files.
        run_dir: folder of this run; a new one under runs/ if not given.
        evaluate_every: rounds between evaluations on the test set; the last round is always evaluated.
        checkpoint_every: rounds between checkpoints.
        keep_models: the rounds whose global model stays in the run folder, in `models/`: a list such as
            `[100, 500, 2000]`, or `every 100`.
        keep_models_slots: whether the model of each slot stays, too, if the strategy has some.
        track: trackers that get the metrics of each round: `tensorboard`, `wandb`, `mlflow`, or a list of them.
        round_timeout: of ray and deployment: seconds to wait for the replies of a round; a later reply counts as a
            failure.
        min_good_replies: a round with fewer good replies is bad: nothing changes in it.
        max_bad_rounds: the number of consecutive bad rounds that are tolerated; one more stops the run, with a
            checkpoint.
        guard: refuse replies that moved more than this many times as far as the round's median, in their weights or
            in their buffers; `off`: none. If not given, 10 in a deployment, else `off`.
        wire: the type in which models are sent; `float16` halves the bytes, and rounds every model to eleven bits
            whenever it is sent. Control variates and other vectors stay `float32`; not with `flwr:NAME`.
    """

    rounds: int = Field(100, ge=1)
    clients: int = Field(100, ge=1)
    clients_per_round: int = Field(10, ge=1)
    seed: int = Field(0, ge=0)
    device: str = "auto"
    precision: Precision = "float32"
    # Not a Literal: the engines import the configuration, and are checked where one is created.
    engine: str = "ray"
    client_cpus: int = Field(1, ge=1)
    data_dir: AbsolutePath | None = None
    run_dir: AbsolutePath | None = None
    evaluate_every: int = Field(1, ge=1)
    checkpoint_every: int = Field(10, ge=1)
    keep_models: tuple[Annotated[int, Field(ge=1)], ...] | EveryRounds = ()
    keep_models_slots: bool = False
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    round_timeout: float = Field(3600.0, gt=0)
    min_good_replies: int = Field(1, ge=1)
    max_bad_rounds: int = Field(0, ge=0)
    guard: float | None = None
    wire: Literal["float32", "float16"] = "float32"
    ray: Ray = Ray()
    deployment: Deployment = Deployment()
    privacy: Privacy = Privacy()
    evaluation: Evaluation = Evaluation()
    stop: Stop = Stop()
    data: Data = Data()
    partition: Partition = Partition()
    model: Model = Model()
    training: Training = Training()
    # A factory, because a plain default would import the algorithm together with this module.
    strategy: Strategy = Field(default_factory=lambda: Strategy.model_validate({}))

    def effective(self) -> dict[str, Any]:
        """Return all keys that have an effect, defaults included, as nested plain values."""
        values = self.model_dump(mode="json", by_alias=True)
        for void in self.void():
            if not void.stays:
                drop(values, void.key)
        return values

    def keeps_models_of(self, number: int) -> bool:
        """Return whether the models of a round stay in the run folder."""
        if isinstance(self.keep_models, str):
            return number % int(self.keep_models.removeprefix("every ")) == 0
        return number in self.keep_models

    @field_validator("track", mode="before")
    @classmethod
    def _may_be_one(cls, names: object) -> object:
        return (names,) if isinstance(names, str) else names

    @field_validator("keep_models", mode="wrap")
    @classmethod
    def _are_rounds(cls, rounds: object, validate: ValidatorFunctionWrapHandler) -> object:
        try:
            return validate(rounds)
        except ValidationError:
            raise ValueError("write a list of rounds, such as [10, 30], or every N") from None

    @property
    def guard_factor(self) -> float | None:
        """The guard in effect; None if there is none. If it is not set: 10 in a deployment, none in a simulation."""
        # Here and not in the default, because `flwr run` decides about the engine after the configuration is read.
        if self.guard is None:
            return _DEPLOYED_GUARD if self.engine == "deployment" and not self.privacy.sealed else None
        return self.guard or None

    @field_validator("guard", mode="before")
    @classmethod
    def _may_be_off(cls, guard: object) -> object:
        if isinstance(guard, str) and guard != "off":
            raise ValueError("it must be a number greater than 1, or off")
        return 0.0 if guard == "off" else guard

    @field_validator("guard")
    @classmethod
    def _passes_the_median(cls, guard: float | None) -> float | None:
        if guard and not guard > 1:
            raise ValueError("it must be greater than 1, or off")
        return guard

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, name: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
            raise ValueError("choose auto, cpu, cuda or cuda:N")
        return name

    @model_validator(mode="after")
    def _fits_together(self) -> "Settings":
        if self.clients_per_round > self.clients:
            raise ValueError(
                f"clients-per-round is {self.clients_per_round} but there are only {self.clients} clients; "
                "lower clients-per-round or raise clients"
            )
        if self.min_good_replies > self.clients_per_round:
            raise ValueError(
                f"min-good-replies is {self.min_good_replies}, more than the {self.clients_per_round} clients of a "
                "round; lower min-good-replies or raise clients-per-round"
            )
        if self.engine == "deployment" and (self.deployment.min_clients or 0) > self.clients:
            raise ValueError(
                f"deployment.min-clients is {self.deployment.min_clients} but there are only {self.clients} clients; "
                "lower deployment.min-clients"
            )
        if self.data.validation and self.partition.name.startswith("file:"):
            raise ValueError(
                "data.validation holds out training examples before they are divided, but the partition of a file "
                "names all of them by their numbers; leave one of them out"
            )
        if self.privacy.local_dp and self.evaluation.clients != "never":
            raise ValueError(
                "evaluation.clients would send each client's accuracy without the noise of privacy.local-dp; leave "
                "one of them out"
            )
        if self.privacy.local_dp and self.evaluation.forgetting:
            raise ValueError(
                "evaluation.forgetting would send each client's accuracy without the noise of privacy.local-dp; "
                "leave one of them out"
            )
        training = self.training
        length = training.warmup_rounds + (training.decay_rounds or self.rounds)
        if training.schedule == "cosine" and not training.final_lr and self.rounds > length:
            raise ValueError(
                f"the learning rate of training.schedule=cosine is 0 after round {length}, but rounds is "
                f"{self.rounds}; raise training.decay-rounds or training.final-lr"
            )
        if self.engine == "ray" and self.device.startswith("cuda") and self.ray.client_gpus == 0:
            raise ValueError(
                f"device is {self.device} but ray.client-gpus is 0, so Ray hides the GPU from the clients; "
                "set ray.client-gpus (0.1 puts ten clients on one card)"
            )
        return self

    def void(self) -> Iterator[Void]:
        """Yield the keys that have no effect, of all sections."""
        yield from super().void()
        yield from self._void_by_engine()
        yield from self._void_by_data()
        yield from self._void_by_strategy()
        yield from self._void_by_rounds()

    def _void_by_engine(self) -> Iterator[Void]:
        """Yield the keys of other engines."""
        users: dict[str, tuple[str, ...]] = {
            f"{name}.{key}": (name,) for name in ("ray", "deployment") for key in _keys(getattr(self, name))
        }
        users["round-timeout"] = ("ray", "deployment")  # the others call their clients directly
        for key, engines in users.items():
            if self.engine not in engines:
                problem = f"engine={self.engine} does not use it; leave it out, or choose {' or '.join(engines)}"
                yield Void(key, ("engine",), problem)

    def _void_by_data(self) -> Iterator[Void]:
        """Yield the keys that need data of another kind."""
        name = self.data.name
        for key, kinds in OPTION_KINDS.items():
            # With nodes it may be for their own files, of another kind than the server's.
            if self.data.kind not in kinds and self.partition.name != "nodes":
                choice = " or ".join(f"{own}:PATH" for own in kinds)
                yield Void(
                    f"data.{key}",
                    ("data.name", "partition.name"),
                    f"data.name={name} does not use it; leave it out, or choose {choice}",
                )
        if self.partition.name == "nodes":
            own = "but with partition.name=nodes each client has its own examples; leave one of them out"
            for key, problem in {
                "data.train-examples": f"it draws from the server's data set, {own}",
                "data.validation": f"it draws from the server's data set, {own}",
                "partition.skew": f"it changes the clients' parts of the server's data set, {own}",
                "evaluation.train": f"it scores training examples, {own}, or use evaluation.clients",
            }.items():
                yield Void(key, ("partition.name",), problem)
        if not self.data.has_images:
            for key in ("data.normalisation", "partition.skew", "training.augment"):
                yield Void(key, ("data.name",), f"data.name={name} has no images; leave it out")
        if not self.data.has_authors and self.partition.name != "nodes":
            yield Void(
                "partition.test",
                ("data.name", "partition.name"),
                f"data.name={name} names no authors of examples; leave it out",
            )

    def _void_by_strategy(self) -> Iterator[Void]:
        """Yield the keys that only other strategies use."""
        strategy = self.strategy
        if not self.keep_models:
            yield Void("keep-models-slots", ("keep-models",), "it needs keep-models, the rounds whose models stay")
        elif not strategy.has_population:
            problem = f"strategy.name={strategy.name} has no model of each slot; leave it out"
            yield Void("keep-models-slots", ("strategy.name",), problem)
        if not strategy.represents:
            problem = (
                f"clients of '{strategy.local_rule or strategy.name}' do not use it; leave it out, or choose moon"
            )
            yield Void("model.features", ("strategy.name", "strategy.local-rule"), problem)

    def _void_by_rounds(self) -> Iterator[Void]:
        """Yield the keys that first matter after the last round."""
        training = self.training
        kept = (
            int(self.keep_models.removeprefix("every "))
            if isinstance(self.keep_models, str)
            else max(self.keep_models, default=0)
        )
        if kept > self.rounds:
            yield Void(
                "keep-models",
                ("rounds",),
                f"rounds is {self.rounds}, so round {kept} never comes; lower one or raise the other",
                stays=True,
            )
        warm = training.warmup_rounds
        if warm >= self.rounds:
            problem = f"rounds is {self.rounds}, so training.lr is never reached; lower it, or raise rounds"
            yield Void("training.warmup-rounds", ("rounds",), problem, stays=True)
        # The first evaluation is the best so far, whatever it gives.
        if self.stop.patience and self.evaluate_every * (self.stop.patience + 1) >= self.rounds:
            why = f"rounds is {self.rounds}, so there are too few evaluations to end before"
            problem = f"{why}; lower it or evaluate-every, or raise rounds"
            yield Void("stop.patience", ("rounds", "evaluate-every"), problem, stays=True)
        if training.schedule == "step" and warm + (training.decay_rounds or 0) >= self.rounds:
            problem = f"rounds is {self.rounds}, so the learning rate never falls; lower it, or raise rounds"
            yield Void("training.decay-rounds", ("rounds", "training.warmup-rounds"), problem, stays=True)

    # Below `_fits_together`, because pydantic runs validators in this order: that one must run inside this one.
    @model_validator(mode="wrap")
    @classmethod
    def _strategy_last(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Check the strategy last: its options need its algorithm, whose imports take seconds."""
        if isinstance(values, dict):
            # Only for its errors: with them the algorithm is never imported.
            handler({**values, "strategy": _LATER})
        settings = handler(values)
        settings._check_strategy()
        return settings

    def _check_strategy(self) -> None:
        """Check the settings that a strategy does not support."""
        name = self.strategy.name
        if self.privacy.local_dp and (exchanges := self.strategy.exchanges):
            raise ValueError(
                f"privacy.local-dp: clients of '{name}' also send vectors without noise ({', '.join(exchanges)}); "
                "choose another strategy"
            )
        if problem := self.strategy.misfit(self.training):
            raise ValueError(problem)
        if self.privacy.sealed and (problem := sealed_problem(self.model_dump(mode="json", by_alias=True))):
            raise ValueError(problem)
        if name.startswith(FLOWER) and self.wire != "float32":
            raise ValueError(f"wire={self.wire}: Flower's own strategies would compute in it; leave wire out")
