"""The analysis of runs: reading them back, and the flatness of what they found."""
