"""The section `evaluation`: what is measured besides the global model's accuracy on the test set, and when."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from fedmr_flwr.config.sections import Section, Void


def _how_often(value: Any) -> Any:
    if value not in ("end", "never") and not (isinstance(value, int) and value >= 1):
        raise ValueError("write a number of rounds, end or never")
    return value


# A number of rounds between two evaluations, of which the last is at the end; "end" or "never".
Often = Annotated[int | str, BeforeValidator(_how_often)]


class Evaluation(Section):
    """Further evaluations: every N rounds (a number) and after the last one, at the `end`, or `never`.

    Attributes:
        train: the global model's loss and accuracy on the training examples of all clients; refused with
            `partition.name=nodes`, where the server does not have them.
        classes: recall, precision and F1 of each class, macro-F1, balanced accuracy, the confusion matrix, and top-5
            accuracy with more than ten classes, on the test set.
        clients: every client scores the global model on its own test examples, if it has some
            (`partition.test-fraction`), or else on its training examples; with `strategy.evaluate-slots` also one of
            the K models, that of slot client mod K.
        fine_tune: of that: the local steps (plain, with the round's learning rate) after which every client scores
            the model once more; needs test examples of the clients.
        forgetting: whether every client that trains scores its model before and after it does, on its own test
            examples or else on its training examples.
    """

    train: Often = "never"
    classes: Often = "never"
    clients: Often = "never"
    fine_tune: int | None = Field(None, ge=1)
    forgetting: bool = False

    def void(self) -> Iterator[Void]:
        """Yield the steps of clients that score nothing."""
        if self.clients == "never":
            yield Void("fine-tune", ("clients",), "it needs evaluation.clients: a number of rounds, or end")


def is_due(often: int | str, number: int, rounds: int) -> bool:
    """Return whether an evaluation takes place.

    Args:
        often: rounds between evaluations, end or never.
        number: of the round.
        rounds: of the run; after the last one everything that is measured at all is.
    """
    return often != "never" and (number == rounds or (isinstance(often, int) and number % often == 0))
