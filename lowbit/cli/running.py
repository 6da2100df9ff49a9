"""``lowbit run``: a config file executed, checked, changed and run; by several processes where asked for."""

import argparse
import contextlib
import dataclasses
import difflib
import importlib.metadata
import importlib.util
import inspect
import os
import subprocess
import sys
import traceback
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .changes import changed, check_types
from .errors import UsageError


def run(chosen: argparse.Namespace) -> int:
    """Runs the experiment of a config file; returns 1 where a piece failed."""
    avoid_wrong_pooling()
    path = config_path(chosen.config)
    module = _executed(path)
    config = asked(path, module, chosen.changes)
    out = Path(chosen.out) if chosen.out else Path("runs") / config.name
    if _has_own_run(module):
        return _run_by_itself(path, module, config, out, chosen)
    from lowbit.run import Suite, run_suite
    from lowbit.run import run as run_one

    config = _without(config, chosen.without)
    options = {"only": chosen.only, "accept_stale": chosen.accept_stale, "is_worker": chosen.worker}
    with _workers(chosen, out):
        if isinstance(config, Suite):
            return int(any(finished.failed for finished in run_suite(config, out, fresh=chosen.fresh, **options)))
        return int(bool(run_one(config, out, fresh=chosen.fresh, **options).failed))


def check(path: Path, changes: Sequence[Sequence[str]], without: Sequence[str] = (), only: Sequence[str] = ()) -> None:
    """Raises where a config file, or one of several lists of changes to it, is not what `run` takes: before any of them runs.

    Raises:
        UsageError: as `run`.
        ValueError: for a glob of ``only`` that fits no piece.
    """
    from lowbit.run.engine import check_only

    module = _executed(path)
    for each in changes:
        config = _without(asked(path, module, each), without)
        if only and not _has_own_run(module):
            check_only(config, only)


def asked(path: Path, module: dict[str, Any], changes: Sequence[str]) -> Any:
    """Returns the config of an executed file, checked, with changes made.

    Raises:
        UsageError: where there is none, or it is not what runs.
    """
    if "config" not in module:
        raise UsageError(f"{path} does not set config = Experiment(...): lowbit new NAME writes one that runs")
    if not _has_own_run(module):
        from lowbit.run import Experiment, Suite

        if not isinstance(module["config"], Experiment | Suite):
            config = module["config"]
            raise UsageError(
                f"{path}: config must be a lowbit.run.Experiment or Suite, got {config!r:.60} ({type(config).__name__}); "
                "a config of another kind comes with a function run(config, out, fresh=)"
            )
        check_types(module["config"], "config")
    else:
        _check_config(path, module["config"], module["run"])
    return changed(module["config"], changes)


def _has_own_run(module: dict[str, Any]) -> bool:
    """Whether a config file brings a function that runs it: the engine's own, imported by name or with all the others, is none."""
    return not getattr(module.get("run"), "__module__", "lowbit.run").startswith("lowbit.run")


def _run_by_itself(path: Path, module: dict[str, Any], config: Any, out: Path, chosen: argparse.Namespace) -> int:
    """A config of another kind, which brings the function that runs it."""
    if chosen.only or chosen.without or chosen.accept_stale or chosen.jobs != 1 or chosen.worker:
        raise UsageError(
            f"{path} brings a run of its own: --only, --without, --accept-stale and --jobs are for an Experiment"
        )
    try:
        module["run"](config, out, fresh=chosen.fresh)
    except SystemExit as error:
        raise UsageError(f"{path}: its run calls sys.exit({error.code!r}): return, or raise an error") from error
    return 0


def _without(config: Any, names: Sequence[str]) -> Any:
    """A config without the evals named."""
    if not names:
        return config
    if hasattr(config, "experiments"):
        return dataclasses.replace(config, experiments=tuple(_without(each, names) for each in config.experiments))
    known = [each.name for each in config.evals]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"--without {unknown[0]}: {config.name} has no such eval; it has {', '.join(known) or 'none'}")
    return dataclasses.replace(config, evals=tuple(each for each in config.evals if each.name not in names))


@contextlib.contextmanager
def _workers(chosen: argparse.Namespace, out: Path) -> Iterator[None]:
    """Further processes that work in the same folder, as long as the block runs; they end with their pieces, or with it."""
    if chosen.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {chosen.jobs}")
    if chosen.jobs > 1 and chosen.fresh:
        from lowbit.run.folder import cleared

        cleared(out)  # once, before the first worker is in it
        chosen.fresh = False
    words = [sys.executable, "-m", "lowbit.cli", "run", chosen.config, "--out", str(out), "--worker"]
    for option, values in (("--set", chosen.changes), ("--only", chosen.only), ("--without", chosen.without)):
        words += [word for value in values for word in (option, value)]
    words += ["--accept-stale"] if chosen.accept_stale else []
    started = [subprocess.Popen(words, stdout=subprocess.DEVNULL) for _ in range(chosen.jobs - 1)]
    try:
        yield
    finally:
        for each in started:
            if each.poll() is None:
                each.terminate()
            each.wait()


def _check_config(path: Path, config: Any, function: Any) -> None:
    """Raises where ``config`` is not what its ``run`` says that it takes, or a field is of another type than declared."""
    if not callable(function):
        raise UsageError(f"{path}: run must be a function, got {function!r:.60}")
    try:
        first = next(iter(inspect.signature(function).parameters))
        wanted = typing.get_type_hints(function).get(first)
    except (StopIteration, TypeError, ValueError, NameError):  # it says nothing of what it takes
        wanted = None
    if isinstance(config, type) or not dataclasses.is_dataclass(config):
        named = wanted.__name__ if isinstance(wanted, type) else "dataclass"
        raise UsageError(f"{path}: config must be a {named}(...), got {config!r:.60} ({type(config).__name__})")
    if not isinstance(getattr(config, "name", None), str):
        raise UsageError(
            f"{path}: config needs a name, which is that of its folder, got {getattr(config, 'name', None)!r}"
        )
    if isinstance(wanted, type) and not isinstance(config, wanted):
        raise UsageError(
            f"{path}: config must be a {wanted.__name__}, which its run takes, got {type(config).__name__}"
        )
    check_types(config, "config")


def avoid_wrong_pooling() -> None:
    """Tells XLA not to fuse reductions into its CPU library calls, where that is wrong and nobody chose otherwise.

    In jax 0.10, XLA's CPU backend compiles a max-pool after two residual convolution blocks to other numbers (off by 1.5
    where the values reach 5; op by op, in IREE and in jax 0.12 they are right). XLA reads this when its backend starts.
    """
    flag = "--xla_cpu_experimental_ynn_fusion_type"
    flags = os.environ.get("XLA_FLAGS", "")
    if importlib.metadata.version("jaxlib").startswith("0.10.") and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}=-LIBRARY_FUSION_TYPE_REDUCE".strip()


def config_path(given: str) -> Path:
    """Returns the path of a config file that is there.

    Raises:
        UsageError: naming those that are near, where it is not.
    """
    path = Path(given)
    if path.is_file():
        if path.suffix != ".py":
            raise UsageError(
                f"{given} is not a Python file: a config is a .py file, such as one that lowbit new writes"
            )
        return path
    folder = path.parent if path.parent.is_dir() and str(path.parent) != "." else Path("experiments/configs")
    known = sorted(str(p) for p in folder.glob("*.py") if not p.name.startswith("_"))
    near = difflib.get_close_matches(str(folder / path.name), known, n=3, cutoff=0.5) or known[:5]
    hint = (
        f"did you mean {' or '.join(near)}?" if near else "give the path of a config file; lowbit new NAME writes one"
    )
    reason = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
    raise UsageError(f"{given} {reason}: {hint}")


def _executed(path: Path) -> dict[str, Any]:
    """The globals of a config file, run with its folder, or the one that holds its package, in reach; then the working folder."""
    top = path.resolve().parent
    while (top / "__init__.py").is_file() and top.parent != top:
        top = top.parent
    if str(top) not in sys.path:
        sys.path.insert(0, str(top))
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    module = types.ModuleType("lowbit_config")
    module.__file__ = str(path)
    sys.modules["lowbit_config"] = module  # classes of the file look for their module by its name
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
        return vars(module)
    except SyntaxError as error:
        raise UsageError(f"{error.filename or path}, line {error.lineno}: {error.msg}") from error
    except ModuleNotFoundError as error:
        root = (error.name or "").partition(".")[0]
        if "." in (error.name or "") and importlib.util.find_spec(root) is not None:
            raise UsageError(f"{path} imports {error.name}: there is no such file") from error
        hint = "'lowbit[run]'" if root in ("rich", "matplotlib") else error.name
        raise UsageError(f"{path} needs {error.name}: pip install {hint}, or put it beside the config") from error
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f", line {frames[-1].lineno}" if frames else ""
        if isinstance(error, SystemExit):
            raise UsageError(f"{path}{line}: it calls sys.exit({error.code!r}): a config only describes") from error
        raise UsageError(f"{path}{line}: {type(error).__name__}: {error}") from error
