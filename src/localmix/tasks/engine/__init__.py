"""A training run, whatever is trained: steps, checkpoints, interruptions, processes; the loop is Lightning's."""
