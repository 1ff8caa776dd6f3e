"""What a node is told of the server's data, to which its own examples must fit."""

from dataclasses import dataclass, field
from functools import lru_cache

from pydantic import TypeAdapter

from fedmr_flwr.data.base import Dataset, Facts, Normalisation

# A node's float values may be so many times as large as the server's; beyond that they are on another scale.
_WIDER = 10


@dataclass(frozen=True)
class DataSpec:
    """The format of the server's examples.

    Attributes:
        input_shape: of an example.
        classes: number of labels.
        normalisation: of images; None for texts and float values.
        largest: the largest value of an input; of float values, the largest without its sign.
        floats: whether the inputs are float values.
        facts: what else the server's files say.
    """

    input_shape: tuple[int, ...]
    classes: int
    normalisation: Normalisation | None
    largest: float
    floats: bool = False
    facts: Facts = field(default_factory=Facts)

    @classmethod
    def of(cls, dataset: Dataset) -> "DataSpec":
        """Return the specification of a data set."""
        largest = max(float(part.inputs.aminmax().max) for part in (dataset.train, dataset.test))
        if floats := dataset.train.inputs.is_floating_point():
            lowest = min(float(part.inputs.aminmax().min) for part in (dataset.train, dataset.test))
            largest = max(largest, -lowest)
        return cls(dataset.input_shape, dataset.classes, dataset.normalisation, largest, floats, dataset.facts)

    @property
    def text(self) -> bool:
        """Whether the inputs are texts."""
        return self.normalisation is None and not self.floats

    @property
    def ceiling(self) -> float:
        """The largest value that a node's own inputs may have; beyond it they are on another scale, or no text.

        There is no lower bound: a node's images may all be dark.
        """
        if self.floats:
            return _WIDER * self.largest
        if self.normalisation is None:
            return max(self.largest, self.classes - 1)
        # 255 is what uint8 can hold, and says nothing about files of a user's own: twice what the server's have.
        return int(self.normalisation.white) if self.normalisation.white < 255 else min(255, 2 * self.largest)

    def to_json(self) -> str:
        """Serialise the specification."""
        return _SPEC.dump_json(self).decode()

    @classmethod
    @lru_cache(maxsize=4)
    def from_json(cls, text: str) -> "DataSpec":
        """Parse what `to_json` returned."""
        return _SPEC.validate_json(text)


_SPEC = TypeAdapter(DataSpec)
