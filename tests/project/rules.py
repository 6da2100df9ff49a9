"""The rules of the tree as functions: a folder in, a list of violations out.

Each rule takes the root of a tree, so that the tests can run it on this project, where it must find nothing, and on a
small tree with one planted violation, where it must find that. Words the rules look for are put together from
parts here, or this file would break them.
"""

import ast
import contextlib
import os
import re
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from lowbit.program import primitives

MAX_LINES = 400
MAX_BYTES = 500_000

# Where a folder walk must not go when there is no git to ask: anywhere, and right under the root.
_NOT_SOURCE = {"build", "dist", "__pycache__", "node_modules"}
_OUTPUTS = {"runs", "data"}

# The beginnings of paths that exist on one machine only.
_MACHINE_ROOTS = ("home", "root", "Users", "work", "opt", "mnt", "tmp")
_ABSOLUTE = re.compile(r"(?<![\w.~}\])/:-])/(?:" + "|".join(_MACHINE_ROOTS) + r")/\w")

# Addresses of package registries, and the options that name one.
_REGISTRY = re.compile(
    "|".join(
        [
            r"pypi\." + "org",
            "python" + "hosted",
            "registry" + r"\.npmjs",
            "--(?:extra-)?index" + "-url",
            "--find" + "-links",
            r"_INDEX" + "_URL",
        ]
    )
)


def files(root: Path) -> list[Path]:
    """The project's own files under `root`: what git tracks or would add, or all but outputs where git is absent."""
    return sorted(root / name for name in _listed(root) if name and (root / name).is_file())


def _listed(root: Path) -> Iterable[str]:
    if (root / ".git").exists():  # without, git would answer for a repository around the tree, which may ignore it
        command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return (os.path.relpath(path, root) for path in _walk(root))


def _walk(root: Path) -> Iterator[str]:
    for folder, names, leaves in os.walk(root):
        skipped = _NOT_SOURCE | (_OUTPUTS if Path(folder) == root else set())
        names[:] = [name for name in names if name not in skipped and not name.startswith((".venv", ".git"))]
        names[:] = [name for name in names if not name.endswith((".egg-info", "_cache"))]
        yield from (os.path.join(folder, leaf) for leaf in leaves)


def text_of(path: Path) -> str:
    """The text of a file, or nothing for a binary one."""
    data = path.read_bytes()
    return "" if b"\0" in data[:8192] else data.decode("utf-8", errors="replace")


def sources(root: Path, *suffixes: str) -> list[Path]:
    """The project's files with one of these suffixes (Python by default)."""
    return [path for path in files(root) if path.suffix in (suffixes or (".py",))]


def long_files(root: Path) -> list[str]:
    """Source files of more than 400 lines: one idea per file, split by concept."""
    found = []
    for path in sources(root, ".py", ".cc", ".cpp", ".h", ".hpp", ".cu"):
        count = len(text_of(path).splitlines())
        if count > MAX_LINES:
            found.append(f"{path.relative_to(root)}: {count} lines, {MAX_LINES} at most")
    return found


def large_files(root: Path) -> list[str]:
    """Files of more than 500 kB: data and weights are installed, not committed."""
    return [
        f"{path.relative_to(root)}: {path.stat().st_size} bytes, {MAX_BYTES} at most"
        for path in files(root)
        if path.stat().st_size > MAX_BYTES
    ]


def private_jax(root: Path) -> list[str]:
    """Python files that reach into JAX's private modules, in an import, an attribute or a string."""
    words = ("jax." + "_src", "jax.lib." + "_", "jaxlib." + "_")
    return [
        f"{path.relative_to(root)}:{number}: {word}"
        for path in sources(root)
        for number, line in enumerate(text_of(path).splitlines(), 1)
        for word in words
        if word in line
    ]


def swallowed(root: Path) -> list[str]:
    """`except:` without a type, and handlers whose whole body is `pass` or `...`."""
    found = []
    for path in sources(root):
        for node in ast.walk(_tree(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            empty = len(node.body) == 1 and (
                isinstance(node.body[0], ast.Pass)
                or (isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant))
            )
            if node.type is None or empty:
                found.append(
                    f"{path.relative_to(root)}:{node.lineno}: {'bare' if node.type is None else 'empty'} except"
                )
    return found


def pickles(root: Path) -> list[str]:
    """Ways to run code by reading a file: pickle and its relatives, and numpy's switch for it."""
    modules = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    found = []
    for path in sources(root):
        tree = _tree(path)
        for line, names in _imports(tree):
            if any(name.partition(".")[0] in modules for name in names):
                found.append(f"{path.relative_to(root)}:{line}: {', '.join(names)}")
        for node in ast.walk(tree):
            if not isinstance(node, ast.keyword) or node.arg != "allow_pickle":
                continue
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                found.append(f"{path.relative_to(root)}:{node.value.lineno}: allow_pickle")
    return found


def kernels_is_a_package(root: Path) -> list[str]:
    """`kernels/__init__.py`: it would shadow another project's import name."""
    path = root / "kernels" / "__init__.py"
    return [str(path.relative_to(root))] if path.exists() else []


def kernels_know_lowbit(root: Path) -> list[str]:
    """Imports of lowbit in the kernels distribution: it takes and returns arrays and integers."""
    found = []
    for path in sources(root):
        if path.relative_to(root).parts[0] == "kernels":
            for line, names in _imports(_tree(path)):
                if any(name.partition(".")[0] == "lowbit" for name in names):
                    found.append(f"{path.relative_to(root)}:{line}")
    return found


def machine_paths(root: Path) -> list[str]:
    """Absolute paths that exist on one machine only."""
    return _matches(root, _ABSOLUTE)


def registry_addresses(root: Path) -> list[str]:
    """Addresses of package registries: the user's own pip settings decide where packages come from."""
    return _matches(root, _REGISTRY)


def test_selections(root: Path) -> list[str]:
    """Tests that skip by themselves: only the `accelerator` marker may, and tests/conftest.py acts on it."""
    found = []
    for path in sources(root):
        if not path.name.startswith("test_"):
            continue
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Call) and _dotted(node.func) in {
                "pytest.skip",
                "pytest.xfail",
                "pytest.importorskip",
            }:
                found.append(f"{path.relative_to(root)}:{node.lineno}: {_dotted(node.func)}")
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                for decorator in node.decorator_list:
                    name = _dotted(decorator.func if isinstance(decorator, ast.Call) else decorator)
                    if name in {"pytest.mark.skip", "pytest.mark.skipif"}:
                        found.append(f"{path.relative_to(root)}:{node.lineno}: {name}")
    return found


def loops_over_jaxprs(root: Path) -> list[str]:
    """Only `lowbit/program` reads the equations of a jaxpr; everything else reads programs."""
    return [
        f"{name}:{node.lineno} reads .eqns"
        for name, tree in _users_of_programs(root)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "eqns"
    ]


def _users_of_programs(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """The name and the syntax of every file of `lowbit` outside of `lowbit/program`."""
    for path in sources(root):
        name = path.relative_to(root).as_posix()
        if name.startswith("lowbit/") and not name.startswith("lowbit/program/"):
            yield name, _tree(path)


OWN_TABLES = {
    "lowbit/export/c/elementwise.py": (2, "what C writes as one call, and what is boolean algebra on bits"),
    "lowbit/export/c/schedule.py": (1, "reads from elsewhere in its operand: what costs in generated loops"),
    "lowbit/export/c/simplify.py": (1, "shifts and differences, whose zero on the right is neutral"),
    "lowbit/export/c/sums.py": (1, "words of reducers in generated names, not primitives"),
    "lowbit/export/fold.py": (2, "what decodes codes: how formats are written, not what primitives mean"),
    "lowbit/export/inexact.py": (1, "operations of StableHLO, some of which are called as jax's are"),
    "lowbit/export/last_step.py": (1, "what moves no result further than its operand"),
    "lowbit/export/litert/affine.py": (1, "what LiteRT has with a constant operand"),
    "lowbit/interpret/fuse.py": (1, "what native calls do after a product"),
    "lowbit/interpret/integer/nodes.py": (1, "movements that codes on one grid have"),
    "lowbit/interpret/integer/templates.py": (1, "how a softmax or a norm may end"),
    "lowbit/rewrites/norms.py": (1, "the arithmetic of batch norms"),
    "lowbit/targets/table.py": (1, "functions that LiteRT computes in floats"),
}
"""Lists of primitives outside `lowbit/program`: how many a file has, and why they say nothing of what primitives mean."""


def tables_of_primitives(root: Path) -> list[str]:
    """What primitives mean is said in `lowbit/program` alone: no other file lists four of them, handlers by name aside."""
    known = {name for names in primitives.MEANINGS.values() for name in names}
    found = []
    for name, tree in _users_of_programs(root):
        lines = [
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Set | ast.Tuple | ast.List)
            and sum(isinstance(e, ast.Constant) and e.value in known for e in node.elts) >= max(4, len(node.elts) / 2)
        ]
        allowed, _ = OWN_TABLES.get(name, (0, ""))
        if len(lines) != allowed:
            found.append(f"{name}: lists of primitives in lines {lines}, {allowed} are allowed")
    return found


def constant_nan(root: Path) -> list[str]:
    """A select between values and the constant NaN: LLVM computes what follows for the constant; `nan_where` takes bits."""
    found = []
    for path in sources(root):
        if path.relative_to(root).parts[0] not in ("lowbit", "kernels"):
            continue
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Call) and _dotted(node.func) in {"jnp.where", "lax.select", "jax.numpy.where"}:
                inner = [n for arg in node.args[1:] for n in ast.walk(arg)]
                if any(isinstance(n, ast.Attribute) and n.attr == "nan" for n in inner):
                    found.append(f"{path.relative_to(root)}:{node.lineno}: {_dotted(node.func)} with NaN")
    return found


def bare_arguments(root: Path) -> list[str]:
    """Public functions and methods of the two distributions with an argument or result that is not annotated."""
    found = []
    for path in sources(root):
        parts = path.relative_to(root).parts
        if parts[0] == "lowbit" or parts[:2] == ("kernels", "lowbit_kernels"):
            for scope, function in _public_functions(_tree(path)):
                arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
                bare = [each.arg for each in arguments if each.annotation is None and each.arg not in {"self", "cls"}]
                bare += ["result"] if function.returns is None else []
                if bare:
                    where = f"{path.relative_to(root)}:{function.lineno}"
                    found.append(f"{where}: {scope}{function.name}: {', '.join(bare)}")
    return found


def _public_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield "", node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                    yield f"{node.name}.", member


def loose_pins(root: Path) -> list[str]:
    """Lines of a constraints file that are not `name==version`, and files that miss a declared requirement."""
    found = []
    project = tomllib.loads((root / "pyproject.toml").read_text())
    apart = (
        root / "constraints" / "edge.txt"
    )  # has an environment of its own: its packages conflict with the others' pins
    pinned_apart = {_name(line) for line in apart.read_text().splitlines()} if apart.is_file() else set()
    wanted = {_name(line) for line in _requirements(project)} - {"lowbit-kernels"} - pinned_apart
    for path in sorted((root / "constraints").glob("*.txt")):
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        found += [
            f"{path.relative_to(root)}: {line!r} is not name==version"
            for line in lines
            if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.+]*", line)
        ]
        if path.stem.startswith("py3"):
            missing = sorted(wanted - {_name(line) for line in lines})
            found += [
                f"{path.relative_to(root)}: {name} is declared in pyproject.toml and not pinned" for name in missing
            ]
    return found


def _requirements(project: dict) -> list[str]:
    table = project["project"]
    groups = [*table.get("optional-dependencies", {}).values(), *project.get("dependency-groups", {}).values()]
    return [*table.get("dependencies", []), *(line for group in groups for line in group)]


def _name(requirement: str) -> str:
    """The normalized name of a requirement or pin."""
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~\[; ]", requirement, maxsplit=1)[0]).lower()


def _matches(root: Path, pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path.relative_to(root)}:{number}: {match.group()}"
        for path in files(root)
        for number, line in enumerate(text_of(path).splitlines(), 1)
        for match in [pattern.search(line)]
        if match
    ]


def _imports(tree: ast.Module) -> Iterator[tuple[int, list[str]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield node.lineno, [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, [node.module or ""]


def _tree(path: Path) -> ast.Module:
    return ast.parse(text_of(path), filename=str(path))


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""
