"""Clients on their own machines: certificates, keys, and the commands that start Flower's programs."""
