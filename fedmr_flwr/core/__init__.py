"""The mathematics: how a model is laid out, its units, recombination, means and similarities; NumPy alone."""
