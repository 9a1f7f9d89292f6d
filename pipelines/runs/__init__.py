"""What a long job needs besides its model: folder, lock, signals, checkpoints, resuming, and rows of figures."""
