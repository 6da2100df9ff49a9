"""The state of a training after every epoch, kept by Orbax: an epoch is there whole or not at all, and checked when read back."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lowbit.core.kept import digest


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(leaf: Any) -> Any:
    """A leaf as an array of numbers: of a random key, its data."""
    return jax.random.key_data(leaf) if _is_key(leaf) else jax.numpy.asarray(leaf)


def _like(leaf: Any, stored: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(stored, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else stored


def _named(tree: Any) -> dict[str, jax.Array]:
    return {f"leaf_{i:05d}": _numbers(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def _seal(leaves: dict[str, jax.Array], notes: dict[str, Any]) -> str:
    """Of every bit of the leaves and of what is noted beside them: Orbax alone checks the arrays, not the notes."""
    return digest((tuple(np.asarray(leaf) for leaf in leaves.values()), tuple(sorted(notes.items()))))


class State:
    """The state of one training, after every epoch; a kill leaves the epoch before.

    Args:
        path: of its folder.
        key: what the training depends on.
        commit: of lowbit, which made it.
        accept_stale: also go on from what another commit left.
    """

    def __init__(self, path: Path, key: str, commit: str | None = None, *, accept_stale: bool = False):
        self.path, self.key, self.commit, self.accept_stale = path, key, commit, accept_stale

    def load(self, like: Any) -> tuple[Any, int] | None:
        """Returns a tree as ``like`` and the number of epochs after which it was kept.

        Returns:
            None where there is none to go on from: no state, one of which a bit is another than was written, one of another
            key or commit, or leaves that do not fit ``like``. In each case the caller begins anew.
        """
        if not self.path.is_dir():
            return None
        wanted = _named(like)
        with self._manager() as manager:
            epochs = manager.latest_step()
            if epochs is None:
                return None
            try:
                noted = manager.restore(epochs, args=ocp.args.Composite(notes=ocp.args.JsonRestore())).notes
                seal, commit = noted.pop("seal"), noted["commit"] if self.accept_stale else self.commit
                if noted != self._notes(wanted, epochs, commit):
                    return None
                tree = manager.restore(epochs, args=ocp.args.Composite(tree=ocp.args.StandardRestore(wanted))).tree
            except Exception:  # noqa: BLE001 - what a damaged file raises is whatever its readers make of it
                return None
        if _seal(tree, noted) != seal:
            return None
        leaves, structure = jax.tree.flatten(like)
        return jax.tree.unflatten(structure, map(_like, leaves, tree.values())), epochs

    def save(self, tree: Any, epochs: int) -> None:
        """Keeps a tree in place of those of other epochs."""
        leaves = _named(tree)
        notes = self._notes(leaves, epochs, self.commit)
        given = ocp.args.Composite(
            tree=ocp.args.StandardSave(leaves), notes=ocp.args.JsonSave({**notes, "seal": _seal(leaves, notes)})
        )
        with self._manager() as manager:
            manager.save(epochs, args=given, force=True)

    def _notes(self, leaves: dict[str, jax.Array], epochs: int, commit: str | None) -> dict[str, Any]:
        shapes = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in leaves.items()}
        return {"key": self.key, "commit": commit, "epochs": epochs, "shapes": shapes}

    def _manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        return ocp.CheckpointManager(self.path.absolute(), options=options)
