"""What holds in every test.

These settings are made when this file is imported, before any test touches JAX, so they also hold in the
doctests of `lowbit`. Annotations are enforced by the `--jaxtyping-packages` flag in pyproject.toml.
"""

import os

# Eight devices on the CPU for the sharding tests. JAX reads this when its backend starts; measured cost over
# one device: none (compilation, eager calls and convolutions within 3 %, results bit-identical).
os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8").strip()

import hypothesis
import jax
import pytest

# Emulators and cross compilers: `make test-edge` names that folder, which runs it.
collect_ignore = ["edge"]

# A promotion that lowbit did not write is a bug: see STYLE "Numerics" in CONTRIBUTING.md.
jax.config.update("jax_numpy_dtype_promotion", "strict")

# A shared check must give the same answer twice; on a developer's machine new examples are drawn every time.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `accelerator` where there is only a CPU: the one reason to skip."""
    if jax.default_backend() != "cpu":
        return
    for item in items:
        if item.get_closest_marker("accelerator"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU or TPU"))
