"""A long pass over batches that goes on where it was killed: its states are kept in a folder, with what they came from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.core.checks import is_traced
from lowbit.core.kept import Kept, digest

EVERY = 8
"""Batches between two states that are kept: of a pass that is killed, so many are computed again at most."""

_NAME = "states"


class Resumed:
    """The states of one pass, kept every few batches and when it is done.

    Which pass it is, the first batch says: a folder is known by the parameters, that batch and the states after it. So the
    first batch is always computed; another function, state or statistic finds nothing, and the pass begins anew.
    Batches that were done are read again, not computed, and compared with what was read then.

    Args:
        cache: the folder, or None: nothing is kept.
        text: the plan's fingerprint and what is done with it.
        content: what the states depend on beside the batches: parameters, the state of quantizers.
    """

    def __init__(self, cache: str | Path | None, text: str, content: Any):
        if cache is not None and not isinstance(cache, str | Path):
            raise TypeError(f"cache must be the path of a folder or None, got {cache!r:.40} ({type(cache).__name__})")
        self._where = cache, text, content
        self._kept: Kept | None = None
        self._seen: list[str] = []
        self._done = 0

    def first(self, batch: Any, states: Any) -> Any:
        """Returns the states after the first batch, or those that were kept of a pass that began so."""
        cache, text, content = self._where
        if cache is None:
            return states
        if any(is_traced(x) for x in jax.tree.leaves((batch, states, content))):
            raise ValueError("cache= is for calls outside jax.jit: what is traced has no values to be kept")
        self._kept = Kept(cache, text, lambda: [content, batch, states])
        self._seen = [digest(batch)]
        stored = self._kept.load(_NAME)
        if stored is None:
            return states
        self._seen = bytes(stored["batches"]).decode().split()
        self._done = len(self._seen)
        return _restored(states, stored)

    def is_done(self, count: int, batch: Any) -> bool:
        """Returns whether the states hold this batch already.

        Raises:
            ValueError: if it is another batch than then.
        """
        if self._kept is None:
            return False
        now = digest(batch)
        if count >= self._done:
            self._seen.append(now)
            return False
        if now != self._seen[count]:
            raise ValueError(
                f"batches[{count}] is another than in the pass that {self._kept.folder} was kept of, which had the same first "
                f"batch: give the batches in the same order, or delete that folder"
            )
        return True

    def after(self, count: int, states: Any) -> None:
        """Keeps the states after ``count`` batches, if it is time."""
        if count % EVERY == 0 and count > self._done:
            self.keep(states)

    def keep(self, states: Any) -> None:
        """Keeps the states as they are."""
        if self._kept is not None and len(self._seen) > self._done:
            arrays = {
                str(i): np.frombuffer(_plain(x).tobytes(), np.uint8) for i, x in enumerate(jax.tree.leaves(states))
            }
            self._kept.keep(_NAME, {**arrays, "batches": np.frombuffer(" ".join(self._seen).encode(), np.uint8)})

    def check_end(self, count: int) -> None:
        """Raises where there were fewer batches than the states hold.

        Raises:
            ValueError: naming both numbers.
        """
        if self._kept is not None and count < self._done:
            raise ValueError(
                f"batches has {count}, and {self._kept.folder} was kept of a pass over {self._done} or more with the same first "
                f"ones: delete that folder to measure the fewer"
            )


def _plain(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def _restored(states: Any, stored: Mapping[str, np.ndarray]) -> Any:
    """The kept arrays in the structure, dtypes and shapes of ``states``."""
    leaves, tree = jax.tree.flatten(states)

    def one(i: int, like: Any) -> Any:
        plain = _plain(like)
        array = jnp.asarray(np.frombuffer(stored[str(i)].tobytes(), plain.dtype).reshape(plain.shape))
        is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like)) if is_key else array

    return jax.tree.unflatten(tree, [one(i, x) for i, x in enumerate(leaves)])
