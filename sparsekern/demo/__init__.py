"""The demonstration: a real transformer, pruned, on real kernels, judged on real data."""
