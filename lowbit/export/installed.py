"""What is installed of a target's tools, in which version, and where tools for other machines are."""

import importlib.metadata
import importlib.util
import os
import shutil
from pathlib import Path

from lowbit.core.folders import cache_folder
from lowbit.targets.target import Target


def tools_folder() -> Path:
    """Returns where programs of other machines are: ``$LOWBIT_TOOLS``, else ``lowbit/tools`` in the user's cache folder."""
    if chosen := os.environ.get("LOWBIT_TOOLS"):
        return Path(chosen).expanduser()
    return cache_folder() / "tools"


def missing(target: Target) -> str:
    """Returns the first package, program or file of a target that is not here; empty where all are."""
    for name in target.modules:
        try:
            is_there = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:  # find_spec of a submodule imports its parent
            is_there = False
        if not is_there:
            return name
    programs = (name for name in target.programs if shutil.which(name) is None)
    files = (str(path) for path in (tools_folder() / name for name in target.files) if not path.is_file())
    return next(iter((*programs, *files)), "")


def version(target: Target) -> str:
    """Returns the name of a target's tool, and its version where it is a Python package."""
    try:
        return f"{target.package} {importlib.metadata.version(target.package)}"
    except importlib.metadata.PackageNotFoundError:  # a program
        return target.package
