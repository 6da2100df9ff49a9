"""``lowbit quantize``: from a float model in a Python file to packed bits, a bundle and a report."""

import argparse
import runpy
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .errors import UsageError


def quantize(chosen: argparse.Namespace) -> None:
    """Quantizes the model of ``FILE.py:FUNCTION``."""
    import lowbit as lb
    from lowbit.core import atomic
    from lowbit.recipes.quantize import quantize as run

    rules = _rules(chosen.rules)
    build, data = _function(chosen.model, "model"), _function(chosen.data, "--data")
    fn, params, state = _model(build(), chosen.model)
    batches: Callable[[], Iterable[Any]] = data
    out = Path(chosen.out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file: choose a folder")
    out.mkdir(parents=True, exist_ok=True)
    with _screen() as progress:
        qparams, plan, report = run(
            fn, params, rules, state=state, batches=batches, recipe=chosen.recipe, cache=out / "solved",
            progress=progress,
        )  # fmt: skip
    size = lb.save(out / "packed.safetensors", plan, qparams)
    atomic.write_file(out / "report.json", report.to_json() + "\n")
    print(report)
    print(f"\n{out / 'packed.safetensors'}: {size:,} bytes")
    if chosen.report:
        from lowbit.report.recipe import recipe_page

        atomic.write_file(out / "report.html", recipe_page(report, title=f"{chosen.model}, {chosen.recipe}"))
        print(out / "report.html")
    targets = [name for name in (chosen.targets or "").split(",") if name]
    if targets:
        first = tuple(next(iter(batches())))
        lead, constant = ((), None) if report.state is None else ((report.state,), (0,))
        bundle = lb.export(
            report.fn, plan, qparams, (*lead, *first), out / "export", targets=targets, constant_args=constant
        )
        print(bundle.path if hasattr(bundle, "path") else out / "export")


def _rules(given: list[str]) -> dict[str, str]:
    """Rules as written: ``RULE`` for everything, or ``GLOB=RULE``; the first that matches wins."""
    rules: dict[str, str] = {}
    for text in given:
        glob, _, rule = text.rpartition("=")
        if (glob or "**") in rules:
            raise UsageError(f"--rules gives {glob or '**'!r} twice")
        rules[glob or "**"] = rule
    return rules


def _function(text: str, what: str) -> Callable[..., Any]:
    """The function of ``FILE.py:NAME``."""
    file, _, name = text.rpartition(":")
    path = Path(file)
    if not file or not name.isidentifier():
        raise UsageError(f"{what} must be FILE.py:FUNCTION, got {text!r}")
    if not path.is_file():
        raise UsageError(f"{path} does not exist: {what} must be FILE.py:FUNCTION")
    sys.path.insert(0, str(path.resolve().parent))
    try:
        names = runpy.run_path(str(path), run_name="lowbit_model")
    except SyntaxError as error:
        raise UsageError(f"{error.filename or path}, line {error.lineno}: {error.msg}") from error
    except ModuleNotFoundError as error:
        raise UsageError(f"{path} needs {error.name}, which is not installed") from error
    except Exception as error:
        raise UsageError(f"{path}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not callable(names.get(name)):
        known = sorted(key for key, value in names.items() if callable(value) and not key.startswith("_"))
        raise UsageError(f"{path} has no function {name!r}; it has {', '.join(known) or 'none'}")
    return names[name]


def _model(made: Any, text: str) -> tuple[Callable[..., Any], Any, Any]:
    """``fn, params, state`` of what a build function returned."""
    import lowbit as lb

    if isinstance(made, tuple) and len(made) == 3 and callable(made[0]):
        return made
    if isinstance(made, tuple) and len(made) == 2:
        return lb.linen(*made) if hasattr(made[0], "apply") else (made[0], made[1], None)
    if type(made).__module__.split(".")[0] != "builtins" and callable(made) and "flax.nnx" in sys.modules:
        return lb.nnx(made)
    raise UsageError(
        f"{text} must return fn, params, state; fn, params; a linen module with its variables; or an nnx model; it "
        f"returned {type(made).__name__}"
    )


class _screen:
    """Progress on standard error, a line that is written over, where it is a terminal."""

    def __enter__(self) -> Callable[[str, int, int], None]:
        self.is_terminal = sys.stderr.isatty()
        return self.said

    def said(self, what: str, done: int, of: int) -> None:
        if self.is_terminal:
            print(f"\r\x1b[K{what} {done}/{of}", end="", file=sys.stderr, flush=True)
        elif done == of:
            print(f"{what} {done}/{of}", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self.is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
