"""``lowbit run``: a config file executed, checked, changed and run."""

import argparse
import dataclasses
import difflib
import importlib.metadata
import importlib.util
import inspect
import os
import runpy
import sys
import traceback
import typing
from pathlib import Path
from typing import Any

from .changes import changed, check_types
from .errors import UsageError


def run(chosen: argparse.Namespace) -> None:
    """Runs the experiment of a config file."""
    _avoid_wrong_pooling()
    path = _config_path(chosen.config)
    module = _executed(path)
    if "config" not in module:
        raise UsageError(f"{path} does not set config = Config(...): see experiments/configs/demo.py")
    if not callable(module.get("run")):
        raise UsageError(f"{path} has no run function: add from experiments.job import run as run")
    _check_config(path, module["config"], module["run"])
    config = changed(module["config"], chosen.changes)
    out = Path(chosen.out) if chosen.out else Path("runs") / config.name
    try:
        module["run"](config, out, fresh=chosen.fresh)
    except SystemExit as error:
        raise UsageError(f"{path}: its run calls sys.exit({error.code!r}): return, or raise an error") from error


def _check_config(path: Path, config: Any, function: Any) -> None:
    """Raises where ``config`` is not what its ``run`` says that it takes, or a field is of another type than declared."""
    if isinstance(config, type) or not dataclasses.is_dataclass(config):
        raise UsageError(f"{path}: config must be a Config(...), got {config!r:.60} ({type(config).__name__})")
    if not isinstance(getattr(config, "name", None), str):
        raise UsageError(
            f"{path}: config needs a name, which is that of its folder, got {getattr(config, 'name', None)!r}"
        )
    try:
        first = next(iter(inspect.signature(function).parameters))
        wanted = typing.get_type_hints(function).get(first)
    except (StopIteration, TypeError, ValueError, NameError):  # it says nothing of what it takes
        wanted = None
    if isinstance(wanted, type) and not isinstance(config, wanted):
        raise UsageError(
            f"{path}: config must be a {wanted.__name__}, which its run takes, got {type(config).__name__}"
        )
    check_types(config, "config")


def _avoid_wrong_pooling() -> None:
    """Tells XLA not to fuse reductions into its CPU library calls, where that is wrong and nobody chose otherwise.

    In jax 0.10, XLA's CPU backend compiles a max-pool after two residual convolution blocks to other numbers (off by 1.5
    where the values reach 5; op by op, in IREE and in jax 0.12 they are right). XLA reads this when its backend starts.
    """
    flag = "--xla_cpu_experimental_ynn_fusion_type"
    flags = os.environ.get("XLA_FLAGS", "")
    if importlib.metadata.version("jaxlib").startswith("0.10.") and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}=-LIBRARY_FUSION_TYPE_REDUCE".strip()


def _config_path(given: str) -> Path:
    path = Path(given)
    if path.is_file():
        if path.suffix != ".py":
            raise UsageError(
                f"{given} is not a Python file: a config is a .py file, such as experiments/configs/demo.py"
            )
        return path
    folder = path.parent if path.parent.is_dir() and str(path.parent) != "." else Path("experiments/configs")
    known = sorted(str(p) for p in folder.glob("*.py") if not p.name.startswith("_"))
    near = difflib.get_close_matches(str(folder / path.name), known, n=3, cutoff=0.5) or known[:5]
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else "give the path of a config file, such as experiments/configs/demo.py"
    )
    reason = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
    raise UsageError(f"{given} {reason}: {hint}")


def _executed(path: Path) -> dict[str, Any]:
    """The globals of a config file, run with the folder that holds ``experiments`` in reach."""
    for root in (*path.resolve().parents, Path.cwd()):
        if (root / "experiments" / "__init__.py").is_file():
            sys.path.insert(0, str(root))
            break
    try:
        return runpy.run_path(str(path), run_name="lowbit_config")
    except SyntaxError as error:
        raise UsageError(f"{error.filename or path}, line {error.lineno}: {error.msg}") from error
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "experiments":
            found = (
                "run inside the repository"
                if importlib.util.find_spec("experiments") is None
                else "there is no such file"
            )
            raise UsageError(f"{path} imports {error.name}: {found}") from error
        raise UsageError(f"{path} needs {error.name}: pip install 'lowbit[experiments]'") from error
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f", line {frames[-1].lineno}" if frames else ""
        if isinstance(error, SystemExit):
            raise UsageError(f"{path}{line}: it calls sys.exit({error.code!r}): a config only describes") from error
        raise UsageError(f"{path}{line}: {type(error).__name__}: {error}") from error
