"""Training: the loops, and what a run is made of (settings, networks, losses, optimizer, validation, model card)."""
