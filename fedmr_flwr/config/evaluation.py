"""The section `evaluation`: what is measured besides the global model's accuracy on the test set, and when."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from fedmr_flwr.config.sections import Section


def _how_often(value: Any) -> Any:
    if value not in ("end", "never") and not (isinstance(value, int) and value >= 1):
        raise ValueError("write a number of rounds, end or never")
    return value


# A number of rounds between two evaluations, of which the last is at the end; "end" or "never".
Often = Annotated[int | str, BeforeValidator(_how_often)]


class Evaluation(Section):
    """Further evaluations.

    Attributes:
        train: when the global model is scored on the training examples of all clients.
        classes: when the global model is scored on each class of the test set.
        clients: when every client scores the global model on its own test examples, if it has some, or else on its
            training examples; with strategy.evaluate-slots, one of the population's models, too.
        fine_tune: of that: the local steps after which a client scores the model once more.
        forgetting: whether every client that trains scores its model before and after it does, on its own test
            examples or else on its training examples.
    """

    train: Often = "never"
    classes: Often = "never"
    clients: Often = "never"
    fine_tune: int | None = Field(None, ge=1)
    forgetting: bool = False


def is_due(often: int | str, number: int, rounds: int) -> bool:
    """Return whether an evaluation takes place.

    Args:
        often: rounds between evaluations, end or never.
        number: of the round.
        rounds: of the run; after the last one everything that is measured at all is.
    """
    return often != "never" and (number == rounds or (isinstance(often, int) and number % often == 0))
