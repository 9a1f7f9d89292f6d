"""How right pictures, maps and edits are, with intervals; whether a model copies its training data."""
