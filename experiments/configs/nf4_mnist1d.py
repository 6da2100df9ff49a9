"""NF4 weights, without training, beside int4 in the same groups; scales in float32 and doubly quantized.

Command::

    lowbit run experiments/configs/nf4_mnist1d.py

Dettmers et al., QLoRA, 2023. Groups of 16 inputs: the layers have no more. Inputs stay in float.

Gives in %, mean ± standard deviation of 3 seeds, in 0.9 minutes on 2 CPU cores: float 93.37 ± 0.12, nf4_g16
92.23 ± 0.90, nf4_g16_dq 92.13 ± 1.12, int4_g16 92.63 ± 0.64, int4_g16_affine 92.57 ± 1.67, int4_channel 91.43 ± 0.95.
"""

from experiments.base import inner, on_mnist1d
from experiments.config import Method
from experiments.job import run as run

config = on_mnist1d(
    "nf4_mnist1d",
    Method("nf4_g16", inner("wnf4/g16")),
    Method("nf4_g16_dq", inner("wnf4/g16/dq")),
    Method("int4_g16", inner("w4/g16")),
    Method("int4_g16_affine", inner("w4/g16/affine")),
    Method("int4_channel", inner("w4")),
)
