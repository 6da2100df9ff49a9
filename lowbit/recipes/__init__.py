"""Post-training methods from end to end: rewrites, ranges, a solver, in one call. One recipe per file."""
