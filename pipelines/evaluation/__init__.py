"""How right pictures and maps are, with intervals; whether a model copies its training data."""
