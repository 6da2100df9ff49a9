"""Packed kernels under `jit` with sharded weights: every bit of one device's result, and no packed weight is gathered."""

import json
import os
import subprocess
import sys


def test_eight_devices_compute_what_one_does_and_gather_no_weight():
    """In a process of its own: the number of devices is read once."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.on_eight_devices"],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert found.pop("a weight that is gathered")["gathers"]
    assert len(found) == 13
    for name, line in found.items():
        assert not line["gathers"], name
        if name.startswith("w4/g64 "):  # float sums, in another order: of 512 products in float32
            assert line["error"] <= 8 * 2.0**-23 * 512**0.5 * line["largest"], name
        else:
            assert line["equal"], name
