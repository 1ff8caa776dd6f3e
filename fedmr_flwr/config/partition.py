"""The section `partition`: how the training examples are divided among the clients."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from fedmr_flwr.config.registry import FLOWER
from fedmr_flwr.config.sections import Section, Void

# The partitions that use an option; no other does.
_OPTIONS = {
    "alpha": ("dirichlet", "dirichlet-plain", "quantity"),
    "fill-up": ("dirichlet", "dirichlet-plain"),
    "shards-per-client": ("shards",),
    "arguments": (FLOWER,),
}


class Partition(Section):
    """The division of the training examples among the clients.

    Attributes:
        name: `iid`, `dirichlet`, `dirichlet-plain`, `shards`, `quantity`, `natural`, `file:PATH`, `flwr:NAME` for a
            partitioner of flwr-datasets, or `nodes`: each client has its own examples, in a deployment.
        alpha: the Dirichlet concentration; small is more heterogeneous.
        fill_up: of the Dirichlet partitions: whether clients that draw fewer than 10 examples take others from
            the largest clients; otherwise the draw is repeated, which fails for many clients and a small alpha.
        shards_per_client: of `shards`: the runs of equal labels that a client gets.
        test: where the authors of examples are known (`femnist`, `shakespeare`, files of your own with
            `owners_test`): test on examples of the `participants`, without authors whose training examples no client
            has; or of `all` authors.
        test_fraction: the fraction of its examples that each client keeps for testing, at least one, stratified by
            label. With 0, clients of `natural` use their own test examples where the data set has them; a node
            (`nodes`) that has some in its files uses those in any case.
        arguments: of `flwr:NAME`: what the partitioner's constructor takes, by its Python names, such as
            `{num_classes_per_partition: 2}`; the number of partitions, the column (`label`, or `client`) and the seed
            are the run's.
        skew: on top of any partition, changes each client's images in a measure of its own, drawn from the seed;
            `source` is blur, brightness and colour together, as of another camera. The server's test set stays as it
            is.
        skew_strength: the largest measure of the skew: 1 is half a turn, a factor of 4, or a Gaussian of an eighth of
            the height.
    """

    name: str = "iid"
    alpha: float = Field(0.5, gt=0)
    fill_up: bool = False
    shards_per_client: int = Field(2, ge=1)
    test: Literal["participants", "all"] = "participants"
    test_fraction: float = Field(0.0, ge=0, lt=1)
    arguments: dict[str, bool | int | float | str | list[int] | list[float]] | None = None
    skew: Literal["rotation", "brightness", "blur", "colour", "source"] | None = None
    skew_strength: float = Field(0.5, gt=0, le=1)

    def void(self) -> Iterator[Void]:
        """Yield the options of other partitions, and of a skew that there is not."""
        for key, users in _OPTIONS.items():
            # "flwr:" stands for all partitioners of flwr-datasets.
            if self.name not in users and not (FLOWER in users and self.name.startswith(FLOWER)):
                choice = " or ".join(users)
                problem = f"partition.name={self.name} does not use it; leave it out, or choose {choice}"
                yield Void(key, ("name",), problem)
        if not self.skew:
            yield Void("skew-strength", ("skew",), "it needs partition.skew")
