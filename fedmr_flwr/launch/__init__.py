"""How a run is started: the engines, and the programs that they need."""
