"""How the files of a data set are found, fetched and checked."""

import hashlib
import importlib
import importlib.util
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from lowbit.core import folders
from lowbit.core.atomic import replacing as atomic


class DataError(OSError):
    """Data that is missing or altered; the message is one line and says what to do."""


def cache_folder() -> Path:
    """Returns where fetched files are kept: ``$LOWBIT_DATA``, else ``lowbit`` in the user's cache folder."""
    if chosen := os.environ.get("LOWBIT_DATA"):
        return Path(chosen).expanduser()
    return folders.cache_folder()


def package_file(module: str, relative: str, *, install: str) -> Path:
    """Returns the path of a file inside an installed package, without importing it.

    Args:
        module: the top-level import name.
        relative: path inside the package.
        install: the command that the error names where the file is absent.

    Raises:
        DataError: if the package or the file is not there.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise DataError(f"the package {module!r} is not installed: {install}")
    path = Path(spec.origin).parent / relative
    if not path.is_file():
        raise DataError(f"{module!r} is installed but has no {relative}: {install}")
    return path


def reader(module: str, what: str) -> Any:
    """Returns an imported module of the extra ``pretrained``.

    Args:
        module: its name.
        what: it reads, for the error.

    Raises:
        ImportError: naming the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"reading {what} needs {module}: pip install 'lowbit[pretrained]'") from error


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def download(url: str, path: Path, *, timeout: float = 20.0) -> None:
    """Fetches ``url`` into ``path`` with a progress bar.

    Raises:
        DataError: if the address cannot be read.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response, atomic(path) as part, Progress(*columns) as bar:
            task = bar.add_task(path.name, total=int(response.headers.get("Content-Length", 0)) or None)
            with part.open("wb") as file:
                while chunk := response.read(1 << 16):
                    file.write(chunk)
                    bar.advance(task, len(chunk))
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise DataError(f"could not fetch {path.name}: {getattr(error, 'reason', error)}") from error
