"""Captioned pictures as people keep them: read in place, checked, never trusted."""
