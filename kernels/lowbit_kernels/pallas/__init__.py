"""Kernels in Pallas: TPU (Mosaic) and GPU (Mosaic GPU)."""
