"""`import lowbit` gives a small, described surface and changes nothing outside itself."""

import inspect
import os
import subprocess
import sys
import types

import lowbit

MOST = 32  # DESIGN: about 25 names; the rest is imported from its module
PUBLIC = {
    name: value
    for name, value in vars(lowbit).items()
    if not name.startswith("_") and not isinstance(value, types.ModuleType)
}


def test_the_surface_is_small() -> None:
    assert len(PUBLIC) <= MOST, sorted(PUBLIC)


def test_every_public_name_is_described() -> None:
    without = [name for name, value in PUBLIC.items() if not (inspect.getdoc(value) or "").strip()]
    assert not without


def test_no_boolean_is_positional() -> None:
    found = [
        f"{name}({parameter.name}=...)"
        for name, value in PUBLIC.items()
        if inspect.isfunction(value)
        for parameter in inspect.signature(value).parameters.values()
        if isinstance(parameter.default, bool) and parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    assert not found


def test_import_touches_no_setting_and_starts_no_backend() -> None:
    # In a process of its own: here the test settings are already made.
    program = """
import jax
before = dict(jax.config.values)
import lowbit
after = dict(jax.config.values)
changed = sorted(key for key in after if before.get(key) != after[key])
assert not changed, changed
jax.config.update("jax_num_cpu_devices", 3)  # raises where a backend has started
assert len(jax.devices("cpu")) == 3
"""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
