"""Small worlds whose ground truth is known: captions, renderer with exact masks, and a rule-based judge."""

WORLD_NAMES = ("shapes", "emoji", "everyday")
"""The keys of `worlds.WORLDS`, for those that need no more of them and must be imported fast."""
