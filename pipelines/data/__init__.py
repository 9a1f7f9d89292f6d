"""Training data: examples in their order, decoded pixels, batches, and pairs of sentences."""
