"""Adapters from module libraries to pure functions, one library per file."""
