"""`Bundle`: an exported model on disk, and `read_bundle`, which opens one that may come from anyone."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from lowbit.core import atomic
from lowbit.core.moved import moved
from lowbit.packed.files import decode_tensors

from . import inside, manifest

MANIFEST = "manifest.json"
ARTIFACT = "model.mlirbc"
VECTORS = "vectors.safetensors"
_MANIFEST_BYTES = 1 << 28
_MOST_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
"""Of a file that is read whole: half of this machine's memory. A file with holes takes no disk, and its checksum can be right."""

Case = tuple[list[np.ndarray], list[np.ndarray]]
"""Flat inputs, and the flat outputs that `lowbit.execute` gives for them."""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An exported model on disk.

    Attributes:
        path: the folder.
        manifest: what `manifest.json` says.
    """

    path: Path
    manifest: dict[str, Any]

    def file(self, name: str) -> bytes:
        """Returns the bytes of a file that the manifest lists.

        Raises:
            ValueError: if it does not list it, or the file is no regular one inside the folder, larger than half of this
                machine's memory, or not as it was exported.
        """
        entry = self.manifest["files"].get(name)
        if entry is None:
            raise ValueError(f"{self.path / name} is not among the files that the bundle lists")
        if entry["bytes"] > _MOST_BYTES:
            raise ValueError(
                f"{self.path / name} has {entry['bytes']:,} bytes, more than the {_MOST_BYTES:,} that are read on this machine"
            )
        content = inside.read_file(self.path, name, entry["bytes"])
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise _altered(self.path / name)
        return content

    def copied(self, name: str, folder: Path) -> Path:
        """Returns a copy of a listed file in a folder of one's own: what is given to tools that open files themselves."""
        target = folder / Path(name).name
        target.write_bytes(self.file(name))
        return target

    @property
    def artifact(self) -> bytes:
        """The portable artifact of the served form."""
        return self.file(ARTIFACT)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the deflated artifact."""
        return self.manifest["files"][ARTIFACT]["deflated"]

    def cases(self) -> list[Case]:
        """Returns all test vectors: flat inputs and the outputs that belong to them, in the order of the signatures.

        Raises:
            ValueError: if the file does not hold what the signatures say.
        """
        count, path = self.manifest["vectors"], self.path / VECTORS
        try:
            tensors = decode_tensors(self.file(VECTORS))
        except (safetensors.SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no test vectors: {error}") from None
        sides: list[list[np.ndarray]] = []
        for word in ("input", "output"):
            arrays = []
            for i, entry in enumerate(self.manifest[f"{word}s"]):
                array, shape = tensors.get(f"{word}{i}"), tuple(entry["shape"])
                shape = (count, *shape) if count > 1 else shape
                if array is None or not _fits(array, shape, entry["dtype"]):
                    raise ValueError(f"{path}: {word}{i} is not what {entry['name']!r} of the signature is")
                arrays.append(array if count > 1 else array[None])
            sides.append(arrays)
        inputs, outputs = sides
        return [([x[n] for x in inputs], [y[n] for y in outputs]) for n in range(count)]

    def vectors(self) -> Case:
        """Returns the first test inputs and the outputs that belong to them, flat, in the order of the signatures."""
        return self.cases()[0]

    def __str__(self) -> str:
        files = self.manifest["files"]
        sizes = ", ".join(f"{name} {entry['bytes']:,} B" for name, entry in files.items())
        return f"{self.path}: {sizes}"


def _fits(array: np.ndarray, shape: tuple[Any, ...], dtype: str) -> bool:
    """Whether an array has a dtype, and a shape whose symbols may be any number."""
    return (
        str(array.dtype) == dtype
        and array.ndim == len(shape)
        and all(isinstance(want, str) or n == want for n, want in zip(array.shape, shape, strict=True))
    )


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Returns the bundle in a folder, every file checked against its checksum, the manifest against its digest.

    Only regular files inside the folder are opened, those that the manifest lists; nothing is compiled, loaded or run.
    The checks find accidents. They do not tell who made the bundle: see `lowbit.export.manifest`.

    Raises:
        TypeError: if ``path`` is no path.
        ValueError: if it is no bundle, of another version, a file is missing, altered, or no regular file of the folder,
            or the manifest's scales are not those that the artifact was exported with.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a string or a path, got {type(path).__name__}")
    folder = Path(path)
    if not os.path.lexists(folder):
        atomic.settle(folder)
    try:
        said = manifest.decoded(inside.read_file(folder, MANIFEST, _MANIFEST_BYTES))
    except ValueError as error:
        raise ValueError(f"{folder} is not a bundle that can be read: {error}; lowbit.export writes one") from None
    bundle = Bundle(folder, said)
    for name in (ARTIFACT, VECTORS):
        if name not in said["files"]:
            raise ValueError(f"{folder} is not a bundle: it has no {name}; export again")
    for name, entry in said["files"].items():
        if entry["bytes"] > _MOST_BYTES:
            bundle.file(name)  # says so, before it is read for its checksum
        digest = hashlib.sha256()
        for chunk in inside.pieces(folder, name, entry["bytes"]):
            digest.update(chunk)
        if digest.hexdigest() != entry["sha256"]:
            raise _altered(folder / name)
    if manifest.scales_mark(said) not in bundle.artifact:
        raise ValueError(
            f"{folder}: the scales of manifest.json are not those that {ARTIFACT} was exported with; export again"
        )
    return bundle


def _altered(path: Path) -> ValueError:
    return ValueError(f"{path} is missing or was altered after the export; export again")


__getattr__ = moved(__name__, {"read": f"{__name__}.read_bundle"})
