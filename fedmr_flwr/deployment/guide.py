"""The README of a deployment, with the exact commands for each machine."""

from pathlib import Path

from fedmr_flwr.deployment.commands import SUPERLINK, configuration, over_grpc
from fedmr_flwr.deployment.folders import NodeSettings, ServerSettings

_TEXT = """\
# A deployment of fedmr_flwr

For the server {hosts} and {clients} nodes. The certificate is valid for a year and only for these names; for
other names create a new deployment.

| folder | copy to | secret files |
|---|---|---|
| `server/` | the server | `server.key` |
{rows}

Copy each folder to its machine over a channel that you trust, and delete it here. Secret files are readable only for
their owner; keep it that way (`scp -p`, `tar` and `rsync -p` do). The key that signed the certificates was not saved.
All nodes have the same `sealing.key`, for runs with `privacy.sealed`; the server must never have it.
On each machine use an account that owns only this folder and can read the data, not root. On machines that others
use, too, read what docs/guides/deploy.md of the project says of such machines, and its firewall rule.

Install the same version of fedmr_flwr on all machines.

## Firewall
The server must be reachable on port {port}/tcp from the nodes only. Nodes need no open port.

## 1. On the server
```bash
fedmr deploy server server
```
Only nodes with public keys in `server/nodes/` may connect. Its settings are in `server/server.yaml`.

## 2. On each node
Set `data` in the node's `node.yaml` to its own examples, an npz file with `x_train` and `y_train`, or to a folder
with the files of the run's data set; and `device`, if the machine has several GPUs. Then
```bash
{starts}
```

## 3. A run, on the server
```bash
export FLWR_HOME=$PWD/server/flower
fedmr run CONF clients={clients} clients-per-round={clients} --superlink {superlink}
```
with `partition.name=nodes` if the nodes have their own examples. Resume a run with
`fedmr resume RUN`, also after the server was stopped. Plain `flwr run APP {superlink}` works, too, without live
rounds. `flwr list {superlink}` shows all runs, `flwr supernode list {superlink}` the nodes. docs/guides/deploy.md of
the project has more: systemd units, privacy, troubleshooting.

## Flower's configuration
`fedmr deploy server` writes it to `server/flower/config.toml`. For a `FLWR_HOME` of your own, in which
`server/flower/credentials.yaml` must be, too, readable for you alone:
```toml
{configuration}```
"""


def text(server: ServerSettings, nodes: list[NodeSettings]) -> str:
    """Return the README of a deployment.

    Args:
        server: the server's settings.
        nodes: the nodes' settings.
    """
    folders = [f"node-{node.client}" for node in nodes]
    return _TEXT.format(
        hosts=", ".join(server.hosts),
        clients=len(nodes),
        rows="\n".join(f"| `{folder}/` | a node | `node.key`, `sealing.key` |" for folder in folders),
        port=server.fleet_port if over_grpc() else server.port,
        starts="\n".join(f"fedmr deploy node {folder}" for folder in folders),
        superlink=SUPERLINK,
        configuration=configuration(Path("/ABSOLUTE/PATH/TO/server"), server),
    )
