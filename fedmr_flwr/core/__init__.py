"""The mathematics: layouts, units, recombination, means and similarities; NumPy only."""
