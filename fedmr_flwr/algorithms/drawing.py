"""The draw of a round's clients."""

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
