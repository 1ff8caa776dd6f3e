"""The wire: arrays, models as records, messages, and checks of replies."""
