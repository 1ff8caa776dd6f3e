"""How a run is started: the choice of its engine, and the programs that the engine needs."""
