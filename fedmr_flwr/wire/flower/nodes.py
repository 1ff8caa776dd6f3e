"""What Flower knows of its nodes."""

from collections.abc import Iterable

from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

__all__ = ["NodeInfo", "in_order_of_registration"]


def in_order_of_registration(grid: Grid, nodes: Iterable[int]) -> list[int]:
    """Return nodes of a Grid in the order in which they registered.

    Identifiers are random in every run. A simulation registers its nodes in the order of their partitions, so that
    this is `partition-id` 0, 1, ...; a SuperLink keeps its nodes, and so their order, for as long as it runs.
    """
    times = {node.node_id: node.registered_at for node in grid.get_nodes()}
    # By the identifier where a Grid does not know the time.
    return sorted(nodes, key=lambda node: (times.get(node, ""), node))
