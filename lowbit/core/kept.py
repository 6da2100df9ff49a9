"""What is solved so far, in a folder, so that a killed run goes on where it was."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load, save

from lowbit.core import atomic


class Kept:
    """Solved windows of one run, in ``folder/<fingerprint>``; nothing where ``folder`` is None.

    The fingerprint is of the plan, the recipe, the parameters and the calibration data: of another run, nothing is found.
    """

    def __init__(self, folder: str | Path | None, text: str, params: Any, batches: Sequence[Any]):
        self.folder = None
        if folder is None:
            return
        found = hashlib.sha256(text.encode())
        for leaf in jax.tree.leaves((params, list(batches))):
            array = np.asarray(leaf)
            found.update(f"{array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).data if array.size else b"")
        self.folder = Path(folder) / found.hexdigest()[:24]

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """Returns what `write` kept under a name, or None."""
        if self.folder is None or not (path := self.folder / f"{name}.safetensors").is_file():
            return None
        return load(path.read_bytes())

    def write(self, name: str, arrays: dict[str, Any]) -> None:
        """Keeps named arrays, whole or not at all."""
        if self.folder is not None:
            content = save({key: np.array(value, order="C") for key, value in arrays.items()})
            atomic.write(self.folder / f"{name}.safetensors", content)
