"""Comparisons: the runs of a study, their results as tables and curves, and running them side by side."""
