"""The section `stop`: when a run ends before its last round."""

from pydantic import Field

from fedmr_flwr.config.sections import Section


class Stop(Section):
    """What ends a run early; whatever comes first.

    Attributes:
        target: the accuracy of the global model on the test or validation set, from 0 to 1.
        patience: so many evaluations on it without a new best accuracy.
        minutes: of all rounds together, with their evaluations, before and after an interruption. The number of
            rounds then depends on the machine.
    """

    target: float | None = Field(None, gt=0, le=1)
    patience: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
