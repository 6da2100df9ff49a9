"""Rewrites of a model that keep its function, applied before bind, one paper per file."""
