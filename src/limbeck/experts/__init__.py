"""Experts: networks trained on real data, kept with their trajectory, alone or in ensembles, or brought by the user."""
