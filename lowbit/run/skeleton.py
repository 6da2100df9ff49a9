"""What `lowbit new` writes: a model of one's own and a config of it, which run at once."""

from pathlib import Path

from lowbit.core import atomic

MODEL = '''"""The network and its data: put yours here."""

import jax
import numpy as np
from flax import nnx

from lowbit.run import Dataset, Model, Split, from_nnx


class Network(nnx.Module):
    """Logits ``[batch, 10]`` of images ``[batch, 12, 12, 1]``: a convolution with batch norm, dropout, a dense layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(6 * 6 * 8, 10, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.norm(self.conv(x)))
        return self.head(self.dropout(x.reshape(len(x), -1)))


def build(seed: int) -> Model:
    """Returns the network with parameters drawn from ``seed``."""
    return from_nnx(Network(nnx.Rngs(seed)))


def load() -> Dataset:
    """Returns made-up images whose class is the row of a bright stripe."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 1_200).astype(np.int32)
    images = rng.normal(0, 1.2, (1_200, 12, 12, 1)).astype(np.float32)
    images[np.arange(1_200), labels] += 1.0
    images[np.arange(1_200), labels + 1] += 1.0
    train, test = slice(1_000), slice(1_000, None)
    return Dataset("stripes", "made up", Split(images[train], labels[train]), Split(images[test], labels[test]))
'''

CONFIG = '''"""{name}: float beside 8 bits, and 4 bits rounded to nearest and trained.

Command::

    lowbit run {name}.py
"""

import {name}_model as model

import lowbit as lb
from lowbit.run import ACCURACY, Experiment, Fit, Method, cross_entropy, grids, latency

QAT = Fit(epochs=2, batch=50, lr=1e-3, step_lr=1e-3)

config = Experiment(
    name="{name}",
    data=model.load,
    model=model.build,
    metric=ACCURACY,
    loss=cross_entropy,
    fit=Fit(epochs=4, batch=50, lr=3e-3),
    methods=(
        Method("w8a8", {{"**": "w8,a8"}}),
        Method("rtn_w4a4", {{"**": "w4,a4"}}),
        Method("lsq_w4a4", {{"**": lb.lsq("w4,a4")}}, QAT),
        Method("folded_w4a4", {{"**": lb.lsq("w4,a4")}}, QAT, freeze_norms=20),
    ),
    seeds=(0,),
    evals=(latency(), grids()),
)
'''


def write_skeleton(name: str, folder: Path) -> tuple[Path, Path]:
    """Writes ``<name>.py``, a config, and ``<name>_model.py``, and returns both paths.

    Args:
        name: of the experiment: a Python name.
        folder: where they go, made if need be.

    Raises:
        ValueError: if the name is not one.
        FileExistsError: if one of the files is there.
    """
    if not name.isidentifier() or not name.isascii():
        raise ValueError(f"NAME must be letters, digits and _, got {name!r}")
    paths = folder / f"{name}.py", folder / f"{name}_model.py"
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} exists: choose another name")
    atomic.write_file(paths[0], CONFIG.format(name=name))
    atomic.write_file(paths[1], MODEL)
    return paths
