"""Where metrics go besides ``metrics.jsonl``: a writer is one function of the run's folder and a line.

A line is ``{"piece": name, "kind": "epoch", "epoch": n, "loss": ..., ...}``: numbers and texts, in dicts where they are many. Lines
of kind ``result`` and of evals have no epoch.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Writer = Callable[[Path, Mapping[str, Any]], None]
"""``writer(folder, line)``, called for every line; what it raises is said once and stops nothing."""


def numbers(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields the numbers of a line by a tag, keys joined by slashes; epochs and seeds are none.

    Example:
        >>> dict(numbers({"kind": "epoch", "epoch": 1, "loss": 0.5, "step": {"a/weight": 0.1}}))
        {'loss': 0.5, 'step/a/weight': 0.1}
    """
    for key, value in line.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{key}/")
        elif (
            isinstance(value, int | float) and not isinstance(value, bool) and (prefix or key not in ("epoch", "seed"))
        ):
            yield f"{prefix}{key}", float(value)


@functools.lru_cache(maxsize=256)
def _events(folder: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard writes by tensorboardX: pip install 'lowbit[tensorboard]'") from error
    return SummaryWriter(str(folder))


def tensorboard(folder: Path, line: Mapping[str, Any]) -> None:
    """Writes numbers as TensorBoard's scalars: ``tensorboard --logdir runs/NAME/tensorboard``, one of its runs for every piece.

    Raises:
        ImportError: without tensorboardX.
    """
    events = _events(folder / "tensorboard" / str(line["piece"]))
    for tag, value in numbers(line):
        events.add_scalar(f"{line['kind']}/{tag}", value, line.get("epoch", 0))
    events.flush()


@functools.lru_cache(maxsize=256)
def _wandb_run(folder: Path, piece: str) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise ImportError("wandb writes by wandb: pip install 'lowbit[wandb]'") from error
    return wandb.init(project=folder.name, group=str(folder), name=piece, dir=str(folder), reinit="create_new")


def wandb(folder: Path, line: Mapping[str, Any]) -> None:
    """Writes numbers to Weights & Biases: a project of the folder's name, one of its runs for every piece.

    Raises:
        ImportError: without wandb.
    """
    run = _wandb_run(folder, str(line["piece"]))
    tagged = {f"{line['kind']}/{tag}": value for tag, value in numbers(line)}
    run.log(tagged if "epoch" not in line else {"epoch": line["epoch"], **tagged})
