"""What each test costs the processor, how much of that is tracing and compiling, and how many programs it compiles.

`make pytest` writes a line of JSON per test; `make test-times` prints the sums per test file. Time is the processor's, not the
clock's, so it means the same on a busy machine; subprocesses count once they have ended.
"""

import collections
import json
import resource
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

START = "(start of each process: imports, collection)"
_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "traced",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowered",
    "/jax/core/compile/backend_compile_duration": "compiled",
    "/jax/compilation_cache/cache_retrieval_time_sec": "loaded",
}


class Recorder:
    """The plugin: it measures where tests run, and writes where their reports arrive."""

    def __init__(self, path: Path, *, writes: bool):
        self.path, self.writes, self.is_first = path.absolute(), writes, True
        self.used: collections.Counter[str] = collections.Counter()
        jax.monitoring.register_event_duration_secs_listener(self._add)
        if writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")

    def _add(self, event: str, seconds: float, **_: object) -> None:
        if (name := _EVENTS.get(event)) is not None:
            self.used[name] += seconds
            self.used[f"n_{name}"] += 1

    def _read(self) -> dict[str, float]:
        spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        own, ended = (usage.ru_utime + usage.ru_stime for usage in spent)
        return {"cpu": own + ended, "children": ended, **self.used}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Iterator[Any]:
        self.before = self._read()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Iterator[Any]:
        """The last report of a test carries the numbers to the process that writes them."""
        report = yield
        if call.when == "teardown":
            used = {name: round(value - self.before.get(name, 0), 4) for name, value in self._read().items()}
            if self.is_first:
                used["start"], self.is_first = self.before["cpu"], False
            report.user_properties = [*report.user_properties, ("used", used)]
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for used in (value for name, value in report.user_properties if self.writes and name == "used"):
            with self.path.open("a") as file:
                file.write(json.dumps({"test": report.nodeid, **used}) + "\n")  # pyright: ignore[reportGeneralTypeIssues]


def table(lines: Iterable[str]) -> str:
    """The sums per test file, the longest first."""
    files: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for line in lines:
        used = json.loads(line)
        file = used.pop("test").partition("::")[0]
        if start := used.pop("start", 0):
            files[START].update({"cpu": start, "n": 1})
        files[file].update({**used, "n": 1})
    total = sum(files.values(), collections.Counter())
    rows = [*sorted(files.items(), key=lambda item: -item[1]["cpu"]), ("all", total)]
    text = [
        f"{'tests':>6} {'min':>6} {'of them: traced':>16} {'lowered':>8} {'compiled':>9} {'children':>9} {'programs':>9} {'from cache':>11}"
    ]
    for file, used in rows:
        minutes = [used[name] / 60 for name in ("cpu", "traced", "lowered", "compiled", "children")]
        cells = "{:6.2f} {:16.2f} {:8.2f} {:9.2f} {:9.2f}".format(*minutes)
        text.append(f"{used['n']:6.0f} {cells} {used['n_compiled']:9.0f} {used['n_loaded']:11.0f}  {file}")
    return "\n".join(text)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}, minutes of processor\n{table(Path(name).read_text().splitlines())}")
