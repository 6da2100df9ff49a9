"""MNIST-1D: 4,000 + 1,000 signals of 40 samples, 10 classes, drawn by a fixed procedure (Apache-2.0).

Greydanus, Kobak, Scaling down deep learning with MNIST-1D, ICML 2024, https://arxiv.org/abs/2011.14439: ten templates
of 12 points, padded, stretched, scaled, shifted, sheared, with correlated and white noise. A logistic regression gets
32 %, a multilayer perceptron 68 %, a convolutional network 94 %.

The package ``mnist1d`` brings a few hundred lines; importing it needs more packages, and it keeps a pickle. So only
its templates are read, as numbers in its source, and the procedure of section 2 is followed here with a random state of
its own. Labels and signals (in float32) are those that the package makes, to the last bit.
"""

import ast
from typing import Any

import numpy as np

from experiments.data.dataset import DataError, package_file
from lowbit.run import Dataset, Split

SAMPLES, TRAINING, SEED = 5_000, 4_000, 42
PADDING, WIDE, LENGTH = (36, 60), 72, 40
SCALE, SHIFT, SHEAR = 0.4, 48, 0.75
CORRELATED, WHITE, BLUR = 0.25, 0.02, 2.0
INSTALL = "pip install --no-deps mnist1d"


def load() -> Dataset:
    """Returns the data set; signals ``[batch, 40, 1]`` of mean 0 and deviation 1.

    Raises:
        DataError: if the package with the templates is not installed, or does not hold ten of them.
    """
    shapes = templates()
    random = np.random.RandomState(SEED)
    each = SAMPLES // len(shapes)
    signals = np.stack([_drawn(shape, random) for shape in shapes for _ in range(each)])
    labels = np.repeat(np.arange(len(shapes), dtype=np.int32), each)
    order = random.permutation(SAMPLES)
    signals, labels = signals[order], labels[order]
    signals = ((signals - signals.mean()) / signals.std()).astype(np.float32)[..., None]
    train = Split(signals[:TRAINING], labels[:TRAINING])
    return Dataset("mnist-1d", "the templates of mnist1d", train, Split(signals[TRAINING:], labels[TRAINING:]))


def templates() -> np.ndarray:
    """Returns the ten templates ``[10, 12]``: deviation 1 / 6, beginning at 0.

    Raises:
        DataError: see `load`.
    """
    path = package_file("mnist1d", "data.py", install=INSTALL)
    function = next(
        (n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == "get_templates"),
        None,
    )
    lists = [] if function is None else [n for n in ast.walk(function) if isinstance(n, ast.List)]
    found: list[Any] = [ast.literal_eval(n) for n in lists if all(isinstance(x, ast.Constant) for x in n.elts)]
    shapes = [values for values in found if len(values) == 12]
    if len(shapes) != 10:
        raise DataError(f"{path} should hold ten templates of 12 numbers, it holds {len(shapes)}: {INSTALL}")
    x = np.asarray(shapes, np.float64)
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    return (x - x[:, :1]) / 6.0


def _drawn(template: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """One signal of float64 ``[40]``: the steps of section 2, each drawing from ``random`` in this order."""
    from scipy.ndimage import gaussian_filter  # jax depends on scipy

    low, high = PADDING
    x = np.concatenate([template + 1e-8, np.zeros(low + int(random.rand() * (high - low + 1)))])
    x = _stretched(x, WIDE) * (1 + SCALE * (random.rand() - 0.5))
    by = random.choice(SHIFT)
    x = np.concatenate([x[-by:], x[:-by]])
    x = np.where(x != 0, x, gaussian_filter(CORRELATED * random.randn(WIDE), BLUR))
    x = x + WHITE * random.randn(WIDE)
    x = x - SHEAR * (random.rand() - 0.5) * np.linspace(-0.5, 0.5, WIDE)
    return _stretched(x, LENGTH)


def _stretched(x: np.ndarray, length: int) -> np.ndarray:
    return np.interp(np.linspace(0, 1, length), np.linspace(0, 1, len(x)), x)
