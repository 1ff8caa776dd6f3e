"""The sections `ray` and `deployment`: the settings of one engine each."""

from pydantic import Field

from fedmr_flwr.config.sections import Section


class Ray(Section):
    """Settings of the engine ray.

    Attributes:
        address: a running Ray cluster to join, `host:port`, or `auto` for the one on this machine; if not given,
            `$RAY_ADDRESS`, and otherwise `local`, a Ray of the run's own.
        client_gpus: the share of a GPU that a client reserves from Ray.
    """

    address: str | None = None
    client_gpus: float = Field(0.0, ge=0)


class Deployment(Section):
    """Settings of the engine deployment.

    Attributes:
        superlink: the SuperLink's name in Flower's own configuration; `--superlink NAME` sets it, and the engine.
        min_clients: the number of clients that must be connected before the first round; all if not given.
        join_timeout: seconds to wait for clients that are not connected.
    """

    superlink: str | None = None
    min_clients: int | None = Field(None, ge=1)
    join_timeout: float = Field(600.0, gt=0)
