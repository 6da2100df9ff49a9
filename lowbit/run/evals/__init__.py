"""Evals: one measurement of finished pieces per file."""
