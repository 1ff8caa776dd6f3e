"""Real clients on machines of their own: certificates, keys, and the commands that start Flower's parts."""
