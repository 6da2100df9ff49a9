"""Export of the executed function to StableHLO and edge compilers, one target per file."""
