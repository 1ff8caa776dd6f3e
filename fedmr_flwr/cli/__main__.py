"""`python -m fedmr_flwr.cli`."""

from fedmr_flwr.cli import main

main()
