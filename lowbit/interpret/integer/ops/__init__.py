"""The kinds of integer computations, one file each, found: a module here has one `Kind`, called as the file is.

To add one, add its file. What it takes of a program, its constants, its integer arithmetic and its meaning in float are in it.
"""

import functools
import graphlib
import importlib
import pkgutil
from collections.abc import Mapping

from lowbit.interpret.integer.kind import Kind


@functools.cache
def kinds() -> Mapping[str, Kind]:
    """Returns every kind by name, in the order in which they are asked about an equation.

    Example:
        >>> names = list(kinds())
        >>> names.index("lookup") < names.index("index") < names.index("affine") < names.index("add")
        True
    """
    by_name: dict[str, Kind] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        by_name[name] = importlib.import_module(f"{__name__}.{name}").KIND
        if by_name[name].name != name:
            raise ValueError(f"the kind {by_name[name].name!r} is in the file of {name!r}: give both one name")
    order = graphlib.TopologicalSorter({name: sorted(kind.after) for name, kind in by_name.items()}).static_order()
    return {name: by_name[name] for name in order}


def kind_named(name: str) -> Kind:
    """Returns the kind of this name.

    Raises:
        ValueError: if there is none: the plan is of another version of lowbit.
    """
    if name not in kinds():
        raise ValueError(f"a step of kind {name!r} is unknown here; there are: {', '.join(sorted(kinds()))}")
    return kinds()[name]
