"""Speed: training, sampling, recording and attention, on a CPU or a GPU, as ratios measured in one run."""
