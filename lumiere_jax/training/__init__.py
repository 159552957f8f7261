"""One training loop for every stage, its tasks, state and checkpoints."""
