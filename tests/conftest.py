"""What holds in every test.

These settings are made when this file is imported, before any test touches JAX, so they also hold in the
doctests of `lowbit`.
"""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

# Eight devices on the CPU for the sharding tests. JAX reads this when its backend starts; measured cost over
# one device: none (compilation, eager calls and convolutions within 3 %, results bit-identical).
os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8").strip()

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

from tests import compiled, times


def _with_arrays(*packages: str) -> Iterator[str]:
    """Names of the modules that annotate arrays. In the others a check of every call would only cost time."""
    for package in packages:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        for folder in map(Path, spec.submodule_search_locations or ()):
            for path in sorted(folder.rglob("*.py")):
                if "from jaxtyping import" in path.read_text():
                    yield ".".join((package, *path.relative_to(folder).with_suffix("").parts))


# Shapes and dtypes in annotations are enforced in tests only, and this is the whole switch.
install_import_hook(list(_with_arrays("lowbit", "lowbit_kernels")), "beartype.beartype")

# Emulators and cross compilers, and public models: `make test-edge` and `make test-models` run these, with packages of their own.
collect_ignore = ["edge", "models"]

# A promotion that lowbit did not write is a bug: see STYLE "Numerics" in CONTRIBUTING.md.
jax.config.update("jax_numpy_dtype_promotion", "strict")

# A shared check must give the same answer twice; on a developer's machine new examples are drawn every time.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


def pytest_configure(config: pytest.Config) -> None:
    """Keeps compiled programs for the next run, and writes what each test costs where `LOWBIT_TIMES` says."""
    is_worker = hasattr(config, "workerinput")
    shared = compiled.shared_folder()
    if shared is not None and not is_worker:
        compiled.prune(shared.parent)
    if shared is not None and (is_worker or not config.getoption("numprocesses", None)):
        config.pluginmanager.register(compiled.Cache(shared))
        compiled.keep_modules_of_iree(shared)
    if is_worker or not config.getoption("numprocesses", None):
        from tests.room import Room  # after the hook above: it imports lowbit

        config.pluginmanager.register(Room())
    if record := os.environ.get("LOWBIT_TIMES"):
        config.pluginmanager.register(times.Recorder(Path(record), writes=not is_worker))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `accelerator` where there is only a CPU: the one reason to skip."""
    if jax.default_backend() != "cpu":
        return
    for item in items:
        if item.get_closest_marker("accelerator"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU or TPU"))
