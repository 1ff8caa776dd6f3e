"""A client: its Flower app, its data and device, what it keeps between rounds, and what leaves it."""
