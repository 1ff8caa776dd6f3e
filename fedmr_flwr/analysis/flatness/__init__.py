"""How flat the minima are that a run found."""
