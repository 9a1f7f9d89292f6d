"""Inspecting a pipeline: trace, attribute, verify, follow one query, and heat maps as pictures."""
