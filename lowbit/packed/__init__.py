"""Packed models: bits, trees, files."""
