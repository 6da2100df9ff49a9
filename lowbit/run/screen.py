"""What a user sees while a job runs: two bars, and a line for every finished piece."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .trajectory import collapsed

try:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
except ImportError as error:
    raise ImportError("lowbit.run shows what it does by rich: pip install 'lowbit[run]'") from error


def console() -> Console:
    """Returns the terminal, or 140 columns where the output goes to a file."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=140)


class Screen:
    """The bars of one job."""

    def __init__(self, out: Console, pieces: int):
        columns = (
            TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        self.out = out
        self._bars = Progress(*columns, console=out, disable=not out.is_terminal)
        self._all = self._bars.add_task("all pieces", total=pieces)
        self._now = self._bars.add_task("starting", total=None)

    @contextmanager
    def shown(self) -> Iterator["Screen"]:
        """Shows the bars until the end of the block."""
        with self._bars:
            yield self

    def say(self, line: str, style: str = "") -> None:
        """Prints a line above the bars."""
        self._bars.console.print(escape(line), style=style, highlight=False, soft_wrap=True)

    def piece(self, done: int) -> None:
        """Sets the first bar."""
        self._bars.update(self._all, completed=done)

    def start(self, name: str, total: int | None = None) -> Callable[[int], None]:
        """Begins a new second bar and returns what sets it."""
        self._bars.reset(self._now, description=name, total=total)
        return lambda done: self._bars.update(self._now, completed=done)


class Training:
    """A `Watch` of the training loop: moves the second bar, keeps the epochs' numbers, and says what goes wrong in them.

    Args:
        screen: with the bar.
        name: of the piece.
        log: takes an epoch and its numbers.
        watch: told ``(name, steps done, loss)`` after every step, or None.
    """

    def __init__(
        self,
        screen: Screen,
        name: str,
        log: Callable[[int, Mapping[str, Any]], None],
        watch: Callable[[str, int, Any], None] | None = None,
    ):
        self._bar: Callable[[int], None] | None = None
        self._screen, self._name, self._log, self._watch = screen, name, log, watch
        self._before: Mapping[str, Any] | None = None

    def step(self, done: int, total: int, loss: Any) -> None:
        """Moves the bar."""
        if self._bar is None:
            self._bar = self._screen.start(self._name, total)
        self._bar(done)
        if self._watch is not None:
            self._watch(self._name, done, loss)

    def epoch(self, epoch: int, values: Mapping[str, Any]) -> None:
        """Keeps the epoch's numbers."""
        self._log(epoch, values)
        if "weight_db" in values:
            for line in collapsed(self._before, values):
                self._screen.say(f"{self._name}, epoch {epoch + 1}: {line}", style="yellow")
            self._before = values
