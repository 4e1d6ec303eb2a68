"""Training: the state, the optimizer, one step, the loop around it, and sweeps of runs."""
