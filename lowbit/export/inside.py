"""Files inside a folder of somebody else's making: regular ones alone, found without following a link.

A bundle may come from anyone. A name in its manifest must not lead out of its folder, and what is opened must be a file: a
FIFO would be waited for, a device read without end.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

_CHUNK = 1 << 20


def check_name(name: object) -> str:
    """Returns a file's name relative to the folder, ``form/model.mlirbc``.

    Raises:
        ValueError: if it leads elsewhere, or is no text.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    if any(part in ("", ".", "..") for part in parts) or "\\" in str(name) or not str(name).isprintable():
        raise ValueError(
            f"a file of a bundle must be named relative to its folder, without '..' and in printable characters, got {name!r:.200}"
        )
    return str(name)


def opened(folder: Path, name: str) -> int:
    """Returns a descriptor of a regular file inside ``folder``; no part of ``name`` may be a link.

    Raises:
        ValueError: if there is no such file, or it is something else.
    """
    *folders, file = check_name(name).split("/")
    at = -1
    try:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        for part in folders:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = inner
        mode = os.lstat(file, dir_fd=at).st_mode
        if not stat.S_ISREG(mode):  # before it is opened: opening a device may do something
            raise ValueError(f"{folder / name} is no regular file, but {_kind(mode)}")
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    except OSError as error:
        reason = "a link on the way, or no folder" if isinstance(error, NotADirectoryError) else error.strerror
        raise ValueError(f"{folder / name} cannot be read: {reason}") from None
    finally:
        if at >= 0:
            os.close(at)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{folder / name} is no regular file")
    return handle


def _kind(mode: int) -> str:
    kinds = {
        stat.S_ISLNK: "a symbolic link",
        stat.S_ISFIFO: "a FIFO",
        stat.S_ISDIR: "a folder",
        stat.S_ISSOCK: "a socket",
    }
    return next((word for is_kind, word in kinds.items() if is_kind(mode)), "a device")


def pieces(folder: Path, name: str, limit: int) -> Iterator[bytes]:
    """Yields the content of a file inside ``folder``.

    Raises:
        ValueError: as `opened`; if it has more than ``limit`` bytes, before any of them is read.
    """
    with open(opened(folder, name), "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            raise ValueError(f"{folder / name} has {size:,} bytes, {limit:,} were expected")
        while chunk := stream.read(_CHUNK):
            yield chunk


def read_file(folder: Path, name: str, limit: int) -> bytes:
    """Returns the content of a file inside ``folder``: see `pieces`."""
    return b"".join(pieces(folder, name, limit))
