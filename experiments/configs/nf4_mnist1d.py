"""NF4 weights, without training, beside int4 in the same groups; scales in float32 and doubly quantized.

Command::

    lowbit run experiments/configs/nf4_mnist1d.py

Dettmers et al., QLoRA, 2023. Groups of 16 inputs: the layers have no more. Inputs stay in float.

Gives in %, mean ± standard deviation of 3 seeds, in 0.3 minutes on 2 CPU cores: float 93.67 ± 1.02, nf4_g16
92.93 ± 0.35, nf4_g16_dq 92.93 ± 0.12, int4_g16 92.60 ± 0.70, int4_g16_affine 93.17 ± 0.91, int4_channel 91.77 ± 1.08.
"""

from experiments.base import inner, on_mnist1d
from lowbit.run import Method

config = on_mnist1d(
    "nf4_mnist1d",
    Method("nf4_g16", inner("wnf4/g16")),
    Method("nf4_g16_dq", inner("wnf4/g16/dq")),
    Method("int4_g16", inner("w4/g16")),
    Method("int4_g16_affine", inner("w4/g16/affine")),
    Method("int4_channel", inner("w4")),
)
