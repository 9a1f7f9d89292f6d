"""A small world with a known truth: written (captions), drawn (render) and seen (judge)."""
