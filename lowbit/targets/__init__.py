"""What each target can hold, as data, and what it cannot take of a plan: for a search over bits and for the exporter."""
