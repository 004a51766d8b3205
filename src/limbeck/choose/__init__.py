"""Everything that selects, on the validation split only."""
