"""Photographs for ImageNet networks: 20 labelled ones that are scored, others for calibration, others for agreement.

The labelled ones come with the package ``foolbox`` (their names say an index and the class); calibration and
tuning see photographs of ``scikit-image`` and ``scikit-learn`` only, and the agreement with float is asked on further ones of
those. Every crop is listed in ``photographs.json``; ``python -m experiments.data.photographs`` writes it (a second, needs
the three packages).
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.dataset import DataError, package_file, reader
from lowbit.run import Dataset, Split

INSTALL = "pip install --no-deps foolbox==3.3.4 scikit-image==0.26.0 scikit-learn==1.9.1"
LIST = Path(__file__).with_name("photographs.json")
FOLDERS = {
    "foolbox": ("foolbox", "data"),
    "scikit-image": ("skimage", "data"),
    "scikit-learn": ("sklearn", "datasets/images"),
}
CALIBRATION = (
    "scikit-image/astronaut.png", "scikit-image/coffee.png", "scikit-image/motorcycle_left.png",
    "scikit-image/motorcycle_right.png", "scikit-image/rocket.jpg", "scikit-image/ihc.png", "scikit-image/retina.jpg",
    "scikit-image/hubble_deep_field.jpg", "scikit-image/brick.png", "scikit-image/grass.png", "scikit-image/coins.png",
    "scikit-image/color.png", "scikit-learn/china.jpg",
)  # fmt: skip
AGREEMENT = (
    "scikit-image/chelsea.png", "scikit-image/camera.png", "scikit-image/gravel.png", "scikit-image/moon.png",
    "scikit-image/cell.png", "scikit-learn/flower.jpg",
)  # fmt: skip
"""Photographs of which no calibration sees a crop; the two motorcycles are one scene and stay together."""
SIDE = 224
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


class Crop(NamedTuple):
    """One crop: ``side`` pixels of the photograph from ``left`` and ``top``, mirrored or not; the class, or -1."""

    file: str
    left: float
    top: float
    side: float
    is_mirrored: bool
    label: int = -1


def crops(part: str) -> list[Crop]:
    """Returns the crops of ``scored`` (ten of each of 20 photographs), ``calibration`` or ``agreement``."""
    return [Crop(*row) for row in json.loads(LIST.read_text())[part]]


def pixels(chosen: list[Crop], side: int = SIDE) -> np.ndarray:
    """Returns crops as ``[crop, side, side, 3]`` in [0, 1], bilinear with anti-aliasing.

    Raises:
        DataError: if a photograph's package is not installed.
        ImportError: without Pillow.
    """
    pillow = _pillow()
    opened: dict[str, Any] = {}
    out = np.empty((len(chosen), side, side, 3), np.float32)
    for i, crop in enumerate(chosen):
        if crop.file not in opened:
            package, name = crop.file.split("/")
            module, folder = FOLDERS[package]
            opened[crop.file] = pillow.open(package_file(module, f"{folder}/{name}", install=INSTALL)).convert("RGB")
        box = (crop.left, crop.top, crop.left + crop.side, crop.top + crop.side)
        picture = opened[crop.file].resize((side, side), pillow.Resampling.BILINEAR, box=box)
        values = np.asarray(picture, np.float32) / 255
        out[i] = values[:, ::-1] if crop.is_mirrored else values
    return out


def normalized(values: np.ndarray) -> np.ndarray:
    """Returns pixels as ImageNet networks of torchvision take them."""
    return (values - MEAN) / DEVIATION


def load() -> Dataset:
    """Returns 256 unlabelled crops for calibration (labels -1) as train, and the 200 scored ones as test.

    Raises:
        DataError: if a photograph's package is not installed.
    """
    splits = {}
    for part in ("calibration", "scored"):
        chosen = crops(part)
        labels = np.array([crop.label for crop in chosen], np.int32)
        splits[part] = Split(normalized(pixels(chosen)), labels)
    return Dataset(
        "photographs", "foolbox's, scikit-image's and scikit-learn's", splits["calibration"], splits["scored"]
    )


def agreement() -> np.ndarray:
    """Returns the 500 unlabelled crops on which quantized and float networks are compared, normalized."""
    return normalized(pixels(crops("agreement")))


def photograph_of(part: str) -> np.ndarray:
    """Returns the index of every crop's photograph: what a bootstrap draws."""
    files = [crop.file for crop in crops(part)]
    names = sorted(set(files))
    return np.array([names.index(file) for file in files], np.int32)


def _pillow() -> Any:
    return reader("PIL.Image", "photographs")


def _sizes(files: list[str]) -> dict[str, tuple[int, int]]:
    pillow = _pillow()
    sizes = {}
    for file in files:
        package, name = file.split("/")
        module, folder = FOLDERS[package]
        with pillow.open(package_file(module, f"{folder}/{name}", install=INSTALL)) as picture:
            sizes[file] = picture.size
    return sizes


def write_list(path: Path = LIST, seed: int = 0) -> None:
    """Writes the list: ten crops of each labelled photograph (its short side as 288), random ones of the others."""
    folder = package_file("foolbox", "data/imagenet_00_243.jpg", install=INSTALL).parent
    names = sorted(each.name for each in folder.glob("imagenet_*.jpg"))
    if len(names) != 20:
        raise DataError(f"foolbox should hold 20 photographs of ImageNet, it holds {len(names)}: {INSTALL}")
    scored = []
    for file, (width, height) in _sizes([f"foolbox/{name}" for name in names]).items():
        label = int(file.removesuffix(".jpg").split("_")[-1])
        side = min(width, height) * SIDE / 288
        right, bottom = width - side, height - side
        for left, top in ((0, 0), (right, 0), (0, bottom), (right, bottom), (right / 2, bottom / 2)):
            scored += [Crop(file, round(left, 3), round(top, 3), round(side, 3), flip, label) for flip in (False, True)]
    draw = np.random.default_rng(seed)

    def drawn(files: tuple[str, ...], count: int) -> list[Crop]:
        sizes, found = _sizes(list(files)), []
        for i in range(count):
            file = files[i % len(files)]
            width, height = sizes[file]
            side = min(width, height) * draw.uniform(0.35, 1.0)
            left, top = draw.uniform(0, width - side), draw.uniform(0, height - side)
            found.append(Crop(file, round(left, 3), round(top, 3), round(side, 3), bool(draw.integers(2))))
        return found

    parts = {"scored": scored, "calibration": drawn(CALIBRATION, 256), "agreement": drawn(AGREEMENT, 500)}
    lines = ",\n".join(
        f'"{part}": [\n' + ",\n".join(json.dumps(list(crop)) for crop in chosen) + "\n]"
        for part, chosen in parts.items()
    )
    path.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    write_list()
