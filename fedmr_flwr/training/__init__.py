"""Local training: the rule of an algorithm, the one loop, and the evaluation of a model."""
