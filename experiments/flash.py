"""A budget of flash that the compiled program keeps: bits are chosen, the C model compiled, and what it takes beside weights counted.

`lowbit.budget(flash=)` counts weights and scales; code, biases and multipliers come on top, and how many bytes they are is known
once a program is compiled. So what the first program is over the budget is taken off, and bits are chosen again.
"""

import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import lowbit as lb
from experiments.data import temperature
from experiments.models import forecaster
from lowbit.allocate.choose import allocation
from lowbit.run import Model, absolute_error
from lowbit.run.environment import command
from lowbit.run.evals import device
from lowbit.run.experiment import Loss
from lowbit.run.folder import RunFolder, plain, write_json
from lowbit.run.screen import console

_ROUNDS = 10


@dataclasses.dataclass(frozen=True)
class Flash:
    """What is asked for.

    Attributes:
        name: of the run's folder.
        limits: bytes of flash, each a budget.
        candidates: to choose from, inputs said.
        uniform: rules that are compiled beside.
        target: that the program is compiled for.
        epochs: of the float network.
        samples: that the compiled program is run on, and compared with `lowbit.execute`.
        seeds: of the network.
    """

    name: str
    limits: tuple[int, ...]
    candidates: tuple[str, ...]
    uniform: tuple[str, ...]
    target: str = "cortex-m4"
    epochs: int = 12
    samples: int = 20
    seeds: tuple[int, ...] = (0,)


def run(config: Flash, out: Path, *, fresh: bool = False) -> Path:
    """Runs what is not finished, writes ``summary.json``, and returns the folder.

    Raises:
        DataError: if the data is not installed.
        ImportError: if a tool of the target is missing.
    """
    device.require(config.target)
    folder, terminal = RunFolder(out, config, fresh=fresh, accept_stale=True), console()
    rows = []
    for seed in config.seeds:
        work: _Work | None = None
        for what in (*config.limits, *config.uniform):
            name = f"seed-{seed}/{what}".replace(",", "_")
            key = hashlib.sha256(
                json.dumps([plain(config.candidates), config.target, config.epochs]).encode()
            ).hexdigest()[:16]
            found = folder.finished(name, key)
            if found is None:
                work = _Work(config, seed) if work is None else work
                found = work.under(what) if isinstance(what, int) else {"rounds": [work.compiled({"**": what})]}
                folder.finish(name, key, found)
            rows.append({"seed": seed, "budget" if isinstance(what, int) else "rule": what} | found)
            last = found["rounds"][-1]
            terminal.print(f"{name:<24} {last['flash_bytes']:8,} bytes  MAE {last['MAE C']:.3f} C", highlight=False)
    made = {key: folder.environment[key] for key in ("versions", "device")}
    write_json(folder.path / "summary.json", {"config": config.name, "command": command(), "rows": rows} | made)
    return folder.path


class _Work:
    """The network of one seed, trained in float, with its scores."""

    def __init__(self, config: Flash, seed: int):
        data = temperature.load()
        self.config, self.test, train = config, data.test, data.train.taken(data.train.size)
        self.model: Model = fitted(
            forecaster.build(seed), train.inputs, train.labels, epochs=config.epochs, batch=64, rate=1e-3, seed=seed,
            loss=absolute_error,
        )  # fmt: skip
        self.batches = [(self.model.state, train.inputs[i : i + 100]) for i in range(0, 500, 100)]
        self.plan = lb.bind(
            self.model.fn, {"**": config.candidates[-1]}, self.model.params, *self.batches[0], integer=True
        )
        self.scores = lb.sensitivity(
            self.model.fn, self.plan, self.model.params, self.batches, candidates=config.candidates, loss="mse"
        )

    def under(self, limit: int) -> dict[str, Any]:
        """Chooses and compiles until the program is within the limit.

        What a program takes besides its weights is taken off the budget as the last one had it; weights become fewer with
        every round.
        """
        rounds: list[dict[str, Any]] = []
        left = limit
        for _ in range(_ROUNDS):
            found = allocation(self.plan, self.scores, budget=lb.budget(flash=left), target=self.config.target)
            weights = int(found.lines[0].costs["flash"])
            rounds.append({"weights": weights, **self.compiled(found.choice)})
            if (taken := rounds[-1]["flash_bytes"]) <= limit:
                return {"rounds": rounds, "choice": found.choice}
            left = min(limit - (taken - weights), weights - 1)
        raise RuntimeError(f"no program of {limit:,} bytes after {_ROUNDS} rounds: {rounds[-1]['flash_bytes']:,}")

    def compiled(self, rules: Mapping[str, str]) -> dict[str, Any]:
        """What the program of a plan takes, and its error; on some samples it gives what `lowbit.execute` gives, bit for bit."""
        model, started = self.model, time.perf_counter()
        plan = lb.bind(model.fn, rules, model.params, *self.batches[0], integer=True)
        qparams = lb.pack(plan, model.params, lb.calibrate(model.fn, plan, model.params, self.batches))
        call, x = lb.execute(model.fn, plan), self.test.inputs
        served = np.concatenate([np.asarray(call(qparams, model.state, x[i : i + 100])) for i in range(0, len(x), 100)])
        with tempfile.TemporaryDirectory() as place:
            bundle = device.exported(
                model.fn, plan, qparams, model.state, x[:1], Path(place) / "b", (self.config.target,)
            )
            ran = device.run(bundle, self.config.target, x[: self.config.samples])
        is_same = bool(np.array_equal(np.asarray(ran.outputs).reshape(-1), served[: self.config.samples].reshape(-1)))
        return {
            "flash_bytes": int(ran.measured["flash_bytes"]),
            "ram_bytes": int(ran.measured["ram_bytes"]),
            "MAE C": forecaster.mean_error(served, self.test.labels),
            "is_same": is_same,
            "seconds": round(time.perf_counter() - started, 1),
        }


def _steps(count: int, batch: int, epochs: int, seed: int) -> np.ndarray:
    """Indices of every step's samples, ``[steps, batch]``; a last short batch of an epoch is left out."""
    draw = np.random.default_rng(seed)
    each = count // batch * batch
    return np.concatenate([draw.permutation(count)[:each].reshape(-1, batch) for _ in range(epochs)])


def fitted(
    model: Model,
    x: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int,
    batch: int,
    rate: float,
    seed: int,
    loss: Loss,
) -> Model:
    """Returns the model trained on labels: Adam, a cosine schedule down to zero."""
    index = _steps(len(x), batch, epochs, seed)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, len(index)))

    @jax.jit
    def step(params: Any, moments: Any, x: Any, labels: Any) -> Any:
        grads = jax.grad(lambda p: loss(model.fn(p, model.state, x), labels))(params)
        updates, moments = optimizer.update(grads, moments)
        return optax.apply_updates(params, updates), moments

    params, moments = model.params, optimizer.init(model.params)
    for some in index:
        params, moments = step(params, moments, x[some], labels[some])
    return model._replace(params=params)
