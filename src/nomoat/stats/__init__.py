"""Statistics of scores: intervals, paired differences and a simulation of their coverage. Pure functions over lists; no torch."""
