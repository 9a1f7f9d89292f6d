"""What keeps a long job whole: folder, lock, signals, checkpoints, resume, rows of figures. No model code."""
