"""Evaluation: named, versioned protocols, last-epoch accuracy on the test split, and fair baselines."""
