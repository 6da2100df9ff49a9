"""Compiles the accelerator kernels for machines that are not there, and reports what the compiler says.

python -m lowbit_kernels.aot tpu              compile every case, compare with golden/tpu.json
python -m lowbit_kernels.aot tpu --update     write golden/tpu.json anew
python -m lowbit_kernels.aot cuda             the same for sm_90a: needs jax 0.11, so Python 3.12

A backend is a `report.Backend` in a module here, named in `__main__.py`. Nothing is run on a
device: a report is evidence that a kernel compiles and a guard against getting worse, not a speed.
"""
