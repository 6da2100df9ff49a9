"""What the numerics cost: encoding 100 million weights, a W4A4 LSQ training step, tracing 60 dense layers; beside float.

Command::

    lowbit run experiments/configs/bench_numerics.py

Needs 2 minutes on 2 CPU cores and 2 GB of memory. It prints a table and writes ``numerics.json`` with commit, versions
and device. Expected on 2 cores: int4 in groups of 32 under 2 s, NF4 under 4 s; a step at most 1.3 float steps; tracing at
most 2.5 times float. Where Qwix is installed (``pip install qwix``) its training form of the same networks is measured in
turn with ours, in int8: the int4 matmul that it traces does not compile on a CPU. It is no `Experiment`: an array that is
encoded, a step that is not taken and a trace have no model that is finished, so no piece and nothing that an eval could take.
"""

import dataclasses
import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowbit as lb
from lowbit.plan.rows import Plan
from lowbit.report.tables import Table, text
from lowbit.run.environment import environment
from lowbit.run.folder import write_json
from lowbit.run.measure import interleaved

Call = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is measured.

    Attributes:
        name: of the folder of results.
        rules: of the training step and the trace.
        formats: encoded by `lowbit.quantize_array`, packed.
        weights: how many are encoded.
        batch: of the training step.
        width: of the dense network that is trained, four layers.
        depth: dense layers that are traced.
        rounds: repetitions of everything; minimum and median are kept.
    """

    name: str = "bench_numerics"
    rules: str = "w4,a4"
    formats: tuple[str, ...] = ("int4/g32", "nf4/g64")
    weights: int = 100_000_000
    batch: int = 256
    width: int = 1024
    depth: int = 60
    rounds: int = 15


config = Bench()


class Dense(nn.Module):
    """Equal dense layers, a relu between."""

    depth: int
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.depth - 1):
            x = nn.relu(nn.Dense(self.width, name=f"dense_{i}")(x))
        return nn.Dense(10, name="head")(x)


class Conv(nn.Module):
    """Three convolutions, a mean over positions, one dense layer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, width in enumerate((32, 64, 64)):
            x = nn.relu(nn.Conv(width, (3, 3), strides=1 + (i > 0), name=f"conv_{i}")(x))
        return nn.Dense(10, name="head")(jnp.mean(x, (1, 2)))


def run(config: Bench, out: Path, *, fresh: bool = False) -> None:
    """Measures everything, prints the table, writes ``numerics.json`` into ``out``."""
    found = {"config": dataclasses.asdict(config), **environment()}
    found["versions"]["qwix"] = importlib.metadata.version("qwix") if _has_qwix() else None
    found["encode"] = {how: _encoding(how, config) for how in config.formats}
    x = jax.random.normal(jax.random.key(1), (config.batch, 784))
    images = x.reshape(-1, 28, 28, 1)
    networks = {f"dense 4 x {config.width}": (Dense(4, config.width), x), "conv 32-64-64": (Conv(), images)}
    found["step"] = {name: _steps(module, x, config) for name, (module, x) in networks.items()}
    found["trace"] = _traces(Dense(config.depth, 64), x, config)
    write_json(out / "numerics.json", found)
    print(text(table(found)))
    print(f"\n{out / 'numerics.json'}")


def table(found: Mapping[str, Any]) -> Table:
    """Returns the results of a run, times in milliseconds, with the ratio to float of the same run."""
    rows = [[f"encode {how}, packed", *_numbers(times), "-"] for how, times in found["encode"].items()]
    parts = {**{f"step, {name}": part for name, part in found["step"].items()}, **found["trace"]}
    for what, part in parts.items():
        for name, times in part.items():
            ratio = times["min"] / part["float"]["min"]
            rows.append([f"{what}: {name}", *_numbers(times), f"{ratio:.2f}"])
    return Table("numerics", ["what", "min ms", "median ms", "of float"], rows)


def _numbers(times: Mapping[str, float]) -> list[str]:
    return [f"{times['min']:.1f}", f"{times['median']:.1f}"]


def _times(calls: Mapping[str, Call], rounds: int) -> dict[str, dict[str, float]]:
    """Least and median milliseconds of calls in turns, without rests: nothing here has threads that spin."""
    times = interleaved(calls, seconds=0, least=rounds, most=rounds, rest=0)
    return {name: {"min": round(t.minimum, 4), "median": round(t.median, 4)} for name, t in times.items()}


def _encoding(how: str, config: Bench) -> dict[str, float]:
    width = 4096
    x = jax.random.normal(jax.random.key(0), (config.weights // width, width))
    times = _times({how: lambda: lb.quantize_array(x, how)}, 3)[how]
    return {**times, "bits_per_weight": round(lb.quantize_array(x, how).bits_per_element, 4), "weights": x.size}


class Prepared(NamedTuple):
    """A network with its plan and measured ranges."""

    module: nn.Module
    variables: Any
    fn: Call
    params: Any
    plan: Plan
    qstate: Any


def _prepared(module: nn.Module, x: jax.Array, rules: str) -> Prepared:
    variables = module.init(jax.random.key(0), x)
    adapted, params, state = lb.linen(module, variables)

    def fn(params: Any, x: jax.Array) -> jax.Array:
        return adapted(params, state, x)

    plan = lb.bind(fn, {"**": lb.lsq(rules)}, params, x)
    return Prepared(module, variables, fn, params, plan, lb.calibrate(fn, plan, params, [(x,)]))


def _losses(network: Prepared, x: jax.Array) -> dict[str, tuple[Call, Any]]:
    """``loss(trained, x)`` and what is trained, of the float model and its training forms; new functions every time."""
    _, variables, fn, params, plan, qstate = network
    labels = jnp.arange(x.shape[0], dtype=jnp.int32) % 10

    def loss_of(call: Call) -> Call:
        return lambda *args: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(call(*args), labels))

    simulated = lb.simulate(lambda params, x: fn(params, x), plan)

    def with_steps(tree: Any, x: jax.Array) -> jax.Array:
        return simulated(tree["params"], {"learn": tree["learn"], "fixed": qstate["fixed"]}, x)

    found = {
        "float": (loss_of(lambda params, x: fn(params, x)), params),
        "lowbit": (loss_of(with_steps), {"params": params, "learn": qstate["learn"]}),
    }
    if _has_qwix():
        import qwix  # pyright: ignore[reportMissingImports] (a peer, measured where it is installed)

        rule = qwix.QtRule(module_path=".*", weight_qtype="int8", act_qtype="int8")
        peer = qwix.quantize_model(network.module, qwix.QtProvider([rule]))
        found["qwix int8"] = (loss_of(lambda params, x: peer.apply({"params": params}, x)), variables["params"])
    return found


def _steps(module: nn.Module, x: jax.Array, config: Bench) -> dict[str, dict[str, float]]:
    """Forward, backward and an SGD update, jitted."""
    optimizer = optax.sgd(1e-3)

    def stepper(loss: Call, tree: Any) -> Callable[[], Any]:
        @jax.jit
        def step(tree, state, x):
            value, gradient = jax.value_and_grad(loss)(tree, x)
            updates, state = optimizer.update(gradient, state, tree)
            return optax.apply_updates(tree, updates), state, value

        state = optimizer.init(tree)
        return lambda: step(tree, state, x)

    calls = {name: stepper(*pair) for name, pair in _losses(_prepared(module, x, config.rules), x).items()}
    return _times(calls, config.rounds)


def _traces(module: nn.Module, x: jax.Array, config: Bench) -> dict[str, dict[str, dict[str, float]]]:
    """The loss, and the loss with its gradient, traced with every cache of jax empty; nothing is compiled."""
    network, found = _prepared(module, x, config.rules), {}
    for what, transformed in (("loss", lambda loss: loss), ("gradient", jax.value_and_grad)):
        times: dict[str, list[float]] = {}
        for _ in range(max(config.rounds // 3, 2)):
            for name, (loss, tree) in _losses(network, x).items():
                jax.clear_caches()
                start = time.perf_counter()
                jax.make_jaxpr(transformed(loss))(tree, x)
                times.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
        found[f"trace of the {what}, {config.depth} layers"] = {
            name: {"min": round(min(spent), 1), "median": round(float(np.median(spent)), 1)}
            for name, spent in times.items()
        }
    return found


def _has_qwix() -> bool:
    return importlib.util.find_spec("qwix") is not None
