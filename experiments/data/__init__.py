"""Data sets, one per file: numpy only, deterministic, each says where it came from."""
