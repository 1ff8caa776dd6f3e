"""Distributions from which values of options are drawn when they are tuned.

An option declares its own beside its type: `mu: Annotated[float, LogUniform(0.001, 1)] = Field(0.01, ge=0)`.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a mistake in a configuration is named without loading NumPy
    import numpy as np

Value = float | int | str

# A value has so many significant digits: more would tell nothing, and could not be read.
_DIGITS = 3


@dataclass(frozen=True)
class LogUniform:
    """Numbers of a range, each order of magnitude as likely.

    Attributes:
        low: the smallest number, above 0.
        high: the largest.
    """

    low: float
    high: float

    def draw(self, rng: "np.random.Generator") -> float:
        """Draw a number."""
        drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return min(max(float(f"{drawn:.{_DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Choice:
    """Some values, each as likely.

    Attributes:
        values: at least one.
    """

    values: tuple[Value, ...]

    def draw(self, rng: "np.random.Generator") -> Value:
        """Draw a value."""
        return self.values[int(rng.integers(len(self.values)))]


@dataclass(frozen=True)
class Around:
    """Numbers around the configured one, log-uniform: for an option whose scale depends on model and optimiser.

    Attributes:
        factor: between the configured number and either end of the range.
    """

    factor: float

    def of(self, number: float) -> LogUniform:
        """Return the range around a number."""
        low, high = (float(f"{end:.{_DIGITS}g}") for end in (number / self.factor, number * self.factor))
        return LogUniform(low, high)


Distribution = LogUniform | Choice
