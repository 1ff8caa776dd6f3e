"""Starting a run: the choice of its engine, and the programs that the engine needs."""
