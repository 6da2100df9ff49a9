"""Benchmarks beside the peers: `python -m lowbit_kernels.bench`."""
