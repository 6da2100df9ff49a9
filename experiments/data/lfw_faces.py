"""200 labelled crops: 100 faces and 100 pieces of background, 25x25 grey, as scikit-image ships them.

From Labeled Faces in the Wild (Huang, Ramesh, Berg, Learned-Miller, 2007). The file is read by path: scikit-image is
not imported, ``pip install --no-deps scikit-image`` is enough.

A detector wants the face in a scene, so a crop is enlarged to 79x79 and put in the middle of a 128x128 image whose
rest repeats the edge pixels. The size was chosen once: the float detector is right on 99.0 % of the 200 from 76 to 80.
"""

import numpy as np

from experiments.data.dataset import DataError, package_file
from lowbit.run import Dataset, Split

SIDE = 128
FACE = 79
INSTALL = "pip install --no-deps scikit-image"


def load() -> Dataset:
    """Returns the 200 images ``[200, 128, 128, 3]`` in [-1, 1], label 1 for a face; train and test are the same images.

    The set is too small to split. Only input ranges are ever measured on ``train``, and no label of it is used.

    Raises:
        DataError: if scikit-image's file is not there, or is not what it should be.
    """
    path = package_file("skimage", "data/lfw_subset.npy", install=INSTALL)
    crops = np.load(path, allow_pickle=False)
    if crops.shape != (200, 25, 25):
        raise DataError(f"{path} should hold 200 crops of 25x25, it holds {crops.shape}: {INSTALL}")
    labels = (np.arange(200) < 100).astype(np.int32)
    order = np.arange(200).reshape(2, 100).T.reshape(-1)  # faces and background in turn: a slice has both
    images = framed(enlarged(crops.astype(np.float32), FACE), SIDE) * 2 - 1
    split = Split(np.repeat(images[order, ..., None], 3, axis=-1).astype(np.float32), labels[order])
    return Dataset("lfw-subset", f"scikit-image's lfw_subset.npy, {FACE} of {SIDE} pixels", split, split)


def enlarged(images: np.ndarray, side: int) -> np.ndarray:
    """Returns ``[batch, side, side]``: bilinear, pixel centres at half integers, edges repeated."""
    matrix = _bilinear(images.shape[-1], side)
    return np.einsum("os,bsw,pw->bop", matrix, images, matrix, optimize=True).astype(np.float32)


def framed(images: np.ndarray, side: int) -> np.ndarray:
    """Returns the images in the middle of ``[batch, side, side]``, edge pixels repeated outwards."""
    before = (side - images.shape[-1]) // 2
    after = side - images.shape[-1] - before
    return np.pad(images, ((0, 0), (before, after), (before, after)), mode="edge")


def _bilinear(size: int, side: int) -> np.ndarray:
    place = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
    low = np.minimum(np.floor(place).astype(int), size - 2)
    matrix = np.zeros((side, size), np.float64)
    matrix[np.arange(side), low] = 1 - (place - low)
    matrix[np.arange(side), low + 1] += place - low
    return matrix
