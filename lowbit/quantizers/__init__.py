"""Quantizers: one paper per file; none imports another."""
