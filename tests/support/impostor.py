"""A SuperNode that claims a registered node's public key and signs with a private key of its own.

impostor.py PUBLIC_KEY FLOWER-SUPERNODE-ARGUMENTS
"""

import sys
from importlib import import_module
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_ssh_public_key

if __name__ == "__main__":
    claimed = load_ssh_public_key(Path(sys.argv.pop(1)).read_bytes())
    cli = import_module("flwr.supernode.cli.flower_supernode")  # a function hides the module of its name
    own = cli._try_setup_client_authentication
    cli._try_setup_client_authentication = lambda args: (own(args)[0], claimed)
    cli.flower_supernode()
