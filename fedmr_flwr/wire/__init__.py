"""What travels: arrays, models as records, messages, and the checks on what comes back."""
