"""What training is fed: examples in order, decoded pixels, batches, pairs of sentences."""
