"""Whole jobs: from a source to a distilled file, its evaluation and its record."""
