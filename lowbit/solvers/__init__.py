"""Solvers that move parameters onto the grid, one paper per file."""
