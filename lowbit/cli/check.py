"""``lowbit check``: laws on what any tool rounded, from its files."""

import argparse
from pathlib import Path
from typing import Any

from .errors import UsageError

NAMES = ("weight", "inputs", "codes", "scales", "zeros", "values")


def check(chosen: argparse.Namespace) -> int:
    """Prints what holds and what does not, and returns 1 where something fails."""
    from lowbit.report.tables import Table, text
    from lowbit.solvers.conformance import check as run

    arrays: dict[str, Any] = {}
    for name in chosen.files:
        for key, value in _read(Path(name)).items():
            if key in arrays:
                raise UsageError(f"{name} holds {key!r}, which another file holds too")
            arrays[key] = value
    if unknown := sorted(set(arrays) - set(NAMES)):
        raise UsageError(f"arrays must be called {', '.join(NAMES)}, got {', '.join(unknown)}")
    if missing := [name for name in ("weight", "codes", "scales") if name not in arrays]:
        raise UsageError(f"the files hold no {', '.join(missing)}; they hold {', '.join(sorted(arrays)) or 'nothing'}")
    if chosen.transposed:
        arrays = {name: x if name == "inputs" else x.T for name, x in arrays.items()}
    outcome = run(
        arrays["weight"], arrays["codes"], arrays["scales"], bits=chosen.bits, inputs=arrays.get("inputs"),
        zeros=arrays.get("zeros"), values=arrays.get("values"), damping=chosen.damping,
    )  # fmt: skip
    rows = [[each.name, each.verdict, each.text] for each in outcome]
    print(text(Table("laws", ["what", "verdict", "numbers"], rows)))
    return 1 if any(each.verdict == "fails" for each in outcome) else 0


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"{path} {'is no regular file' if path.exists() else 'does not exist'}")
    readers = {".npz": _npz, ".safetensors": _safetensors}
    if path.suffix not in readers:
        raise UsageError(f"{path} must be a .npz or .safetensors file")
    try:
        return readers[path.suffix](path)
    except OSError:  # the file's own trouble, which says its name
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{path} cannot be read as a {path.suffix} file: {reason}") from error


def _npz(path: Path) -> dict[str, Any]:
    import numpy as np

    with (
        path.open("rb") as opened,
        np.load(opened, allow_pickle=False) as file,
    ):  # numpy leaves open what it cannot read
        return {name: file[name] for name in file.files}


def _safetensors(path: Path) -> dict[str, Any]:
    from lowbit.packed.files import decode_tensors

    return decode_tensors(path.read_bytes())
