"""The server: an experiment from its settings to its results, round by round."""
