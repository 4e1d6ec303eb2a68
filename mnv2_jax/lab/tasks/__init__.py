"""What is learnt: each task is a tuple of pure functions that the one training loop calls."""
