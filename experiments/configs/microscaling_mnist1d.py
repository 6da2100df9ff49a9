"""MX and NVFP4 weights, without training, beside int4 in groups of 16.

Command::

    lowbit run experiments/configs/microscaling_mnist1d.py

Rouhani et al., Microscaling Data Formats, 2023; OCP MX 1.0; NVIDIA NVFP4. Blocks of 32 are cut to the layers' 16 inputs.
Inputs stay in float: a convolution's input may have a scale per example, not per block.

Gives in %, mean ± standard deviation of 3 seeds, in 0.3 minutes on 2 CPU cores: float 93.67 ± 1.02, mxfp8 93.37 ± 0.67,
mxint8 93.43 ± 0.55, mxfp6 93.37 ± 0.76, mxfp4 91.53 ± 1.14, nvfp4 92.40 ± 0.60, int4_g16 92.60 ± 0.70.
"""

from experiments.base import inner, on_mnist1d
from lowbit.run import Method

config = on_mnist1d(
    "microscaling_mnist1d",
    Method("mxfp8", inner("wmxfp8_e4m3")),
    Method("mxint8", inner("wmxint8")),
    Method("mxfp6", inner("wmxfp6_e2m3")),
    Method("mxfp4", inner("wmxfp4")),
    Method("nvfp4", inner("wnvfp4")),
    Method("int4_g16", inner("w4/g16")),
)
