"""Networks through `lowbit.execute`, compiled for accelerators that are not there, and what those could reach at best.

python -m experiments.aot tpu         compile every network for every TPU, compare with golden/tpu.json
python -m experiments.aot cuda        the same for sm_90a: needs jax 0.11, so Python 3.12
python -m experiments.aot.roofline    the computed tables of papers/accelerators.md
"""
