"""The draws of a round: its clients, and the slots that they train."""

from fedmr_flwr.core.randomness import stream


def draw_clients(round_: int, seed: int, num_clients: int, count: int, purpose: str = "select") -> list[int]:
    """Draw distinct clients; each set and order of them is equally likely.

    Args:
        round_: the round.
        seed: the seed of the run.
        num_clients: the number of clients.
        count: the number to draw.
        purpose: what they are drawn for.
    """
    return [int(client) for client in stream(seed, purpose, round_).choice(num_clients, count, replace=False)]


def draw_slots(round_: int, seed: int, slots: int, count: int) -> list[int]:
    """Draw the slots to train, if there are more of them than clients in the round.

    Args:
        round_: the round.
        seed: the seed of the run.
        slots: K, the number of models.
        count: the number of clients in the round.
    """
    if slots == count:
        return list(range(count))
    drawn = stream(seed, "slots", round_).choice(slots, count, replace=False)
    # Sorted, because the order of the clients is already random.
    return sorted(drawn.tolist())
