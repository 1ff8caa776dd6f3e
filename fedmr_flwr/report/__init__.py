"""Output for people: the progress display, plots, tables, comparisons."""
