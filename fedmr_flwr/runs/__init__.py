"""A run: its folder, its rounds, what it writes and shows."""
