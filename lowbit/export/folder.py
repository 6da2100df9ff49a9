"""A bundle's folder while it is written: every file goes to the disk at once, and the folder to its place at the end."""

import contextlib
import hashlib
import io
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lowbit.core import atomic

_DATE = (1980, 1, 1, 0, 0, 0)  # of zip entries: the same model gives the same bytes

TEXT_BYTES = 1 << 16
"""Up to here an artifact's text is written beside it: what people read is small, and what it costs is not much."""

Content = bytes | Callable[[io.BufferedIOBase], Any]
"""A file's bytes, or what writes them: text of a large model need not be held."""


class Fresh:
    """A folder that is being filled.

    Attributes:
        path: where it is for now.
        files: bytes and sha256 of every file so far, by name.
    """

    def __init__(self, path: Path, *, has_text: bool | None = None):
        self.path = path
        self.has_text = has_text
        self.files: dict[str, dict[str, int | str]] = {}

    def add(self, name: str, content: Content) -> None:
        """Writes a file, and lists it; of a StableHLO artifact its deflated size too, and the deflated one, with the text.

        The text of an artifact comes after it: ``model.mlir`` and ``model.zip`` are written beside ``model.mlirbc`` on
        request, or where that takes at most `TEXT_BYTES`.
        """
        if name.endswith(".mlir") and not self._is_read(self.files[f"{name}bc"]):
            return
        target = self.put(name, content)
        self._list(target)
        if target.suffix == ".mlirbc":
            archive = _deflated(target)
            self.files[name]["deflated"] = archive.stat().st_size
            if self._is_read(self.files[name]):
                self._list(archive)
            else:
                archive.unlink()

    def _is_read(self, artifact: dict[str, int | str]) -> bool:
        """Whether copies of an artifact, for people and for sending, are written beside it."""
        return int(artifact["bytes"]) <= TEXT_BYTES if self.has_text is None else self.has_text

    def put(self, name: str, content: Content) -> Path:
        """Writes a file that is not listed, and returns its path for now."""
        target = self.path / name
        target.parent.mkdir(exist_ok=True)
        with target.open("wb") as stream:
            content(stream) if callable(content) else stream.write(content)
        return target

    def _list(self, file: Path) -> None:
        name = str(file.relative_to(self.path))
        self.files[name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}


def _deflated(source: Path) -> Path:
    target = source.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive, source.open("rb") as plain:
        entry = zipfile.ZipInfo(source.name, _DATE)
        entry.compress_type, entry.file_size = zipfile.ZIP_DEFLATED, source.stat().st_size
        with archive.open(entry, "w") as stream:
            shutil.copyfileobj(plain, stream)
    return target


def sha256(file: Path) -> str:
    """Returns the checksum of a file, which is not read whole."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def fresh(target: Path, *, has_text: bool | None = None) -> Iterator[Fresh]:
    """Gives a folder beside the target that takes its place at the end, whole, and is removed where an error comes first."""
    with atomic.replacing_folder(target) as path:
        yield Fresh(path, has_text=has_text)
