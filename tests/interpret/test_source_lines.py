"""Source lines are the user's, whatever the user's folders are called and however the packages were installed."""

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest

import lowbit as lb
from lowbit.program import compat
from tests.values import normal

PROGRAM = textwrap.dedent("""
    import contextlib
    import functools

    import jax
    import jax.numpy as jnp
    from flax import linen as nn
    from jax import lax


    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3))(x)  # conv
            x = nn.remat(nn.Dense)(6, name="dense")(x)  # dense
            return jnp.einsum("bhwc,bhwd->bcd", x, x)  # product


    @contextlib.contextmanager
    def _scope():
        yield


    @jax.jit
    def pure(p, x):
        with _scope():
            x = functools.reduce(jnp.matmul, (x, p["w"]))  # reduced
        x = lax.ragged_dot(x, p["r"], jnp.array([2, 1], jnp.int32))  # groups
        return lax.custom_linear_solve(lambda y: p["s"] @ y, x[0], lambda mv, b: jnp.linalg.inv(p["s"]) @ b)  # hidden


    def mixed(p, x):
        return x @ (p["w"] * x.mean())  # mixed


    def unplaced(p, x):
        return jnp.sort(x @ p["w"])  # sort
    """)

FOLDERS = ("lowbit/jax/flax/user", "project", "contextlib.py/functools.py", "venv/site-packages/lowbit")


def line(word: str, name: str = "model.py") -> str:
    (number,) = (i for i, text in enumerate(PROGRAM.splitlines(), 1) if text.endswith(f"# {word}"))
    return f"{name}:{number}"


def loaded(path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PROGRAM)
    spec = importlib.util.spec_from_file_location("a_user_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("folder", FOLDERS)
def test_rows_and_errors_have_the_users_line(folder, tmp_path):
    """Every word that a package's path may hold is a folder of the user's too."""
    model = loaded(tmp_path / folder / "model.py")
    net, x = model.Net(), normal(0, 1, 4, 4, 2)
    fn, params, state = lb.linen(net, jax.eval_shape(net.init, jax.random.key(0), x))
    assert state == {}
    plan = lb.bind(fn, {"**": "w8,a8"}, params, state, x)
    assert [row.source for row in plan] == [line("conv"), line("dense"), line("product")]

    p, x = {"w": normal(1, 6, 5), "r": normal(2, 2, 5, 3), "s": normal(4, 3, 3)}, normal(3, 3, 6)
    plan = lb.bind(model.pure, {}, p, x)
    assert [row.source for row in plan] == [line("reduced"), line("groups")]
    assert [where for _, where in plan.unseen] == [line("hidden")]
    with pytest.raises(ValueError, match=rf"\({line('mixed')}\): operand 1 mixes"):
        lb.bind(model.mixed, {"**": "w8,a8"}, {"w": p["w"]}, x)
    with pytest.raises(ValueError, match=rf"cannot place sort \({line('sort')}\)"):
        lb.bind(model.unplaced, {"**": "w8,a8"}, {"w": p["w"]}, x, integer=True)


def test_a_linked_project_and_a_file_called_as_a_module_of_pythons(tmp_path):
    real = tmp_path / "flax" / "functools.py"
    loaded(real)
    (tmp_path / "jax").symlink_to(real.parent)
    model = loaded(tmp_path / "jax" / "functools.py")
    params = {"w": normal(1, 6, 5), "r": normal(2, 2, 5, 3), "s": normal(4, 3, 3)}
    plan = lb.bind(model.pure, {}, params, normal(3, 3, 6))
    assert plan.rows[0].source == line("reduced", "functools.py")


@pytest.mark.parametrize("how", ["folder", "files"])
def test_linked_packages_are_no_users_code(how, tmp_path):
    """An installer may link a package's folder into an environment, or each of its files, and so may a user a whole disk."""
    site = tmp_path / "site"
    site.mkdir()
    for module in (jax, sys.modules["flax"], lb):
        root = Path(module.__path__[0])
        if how == "folder" or module is jax:  # which has a thousand files
            (site / root.name).symlink_to(root)
            continue
        for path in root.rglob("*"):
            if path.suffix == ".py":
                link = site / root.name / path.relative_to(root)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
    (tmp_path / "lowbit").mkdir()
    (tmp_path / "lowbit" / "model.py").write_text(PROGRAM)
    ask = """
        import jax, model, numpy as np, lowbit as lb
        assert all("/site/" in m.__file__ for m in (jax, lb)), (jax.__file__, lb.__file__)
        net, x = model.Net(), np.ones((1, 4, 4, 2), np.float32)
        fn, params, state = lb.linen(net, jax.eval_shape(net.init, jax.random.key(0), x))
        print(*(row.source for row in lb.bind(fn, {}, params, state, x)))
    """
    paths = [site, tmp_path / "lowbit", Path(compat.__file__).parents[2] / "kernels", os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ask)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [line("conv"), line("dense"), line("product")]
