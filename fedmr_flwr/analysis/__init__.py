"""What is learnt from runs: results in Python, flatness, and studies that compare runs."""
