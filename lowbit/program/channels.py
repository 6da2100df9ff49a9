"""Which channel every element of a value belongs to, in as few numbers as say it.

An array of channels has the axes of its value, each of its full length or, where all along it is one channel, of length 1; in
front of them stand axes for the turns of the loops that the value is in. Channels are numbers: 0 is what may not be scaled,
-1 what is not looked at. `Channels` says which are one, and why some are 0.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

Labels = np.ndarray
"""Channels by element, of integers."""


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why a channel cannot be scaled.

    Attributes:
        name: the primitive that stands in the way, or ``result``.
        source: where it was written.
        text: what it does.
    """

    name: str
    source: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}{f' ({self.source})' if self.source else ''} {self.text}"


class Channels:
    """Numbers of channels, some of which are one."""

    def __init__(self) -> None:
        self._parent = np.zeros(1024, np.int64)
        self._count = 1
        self._why: dict[int, Reason] = {}

    def fresh(self, shape: Sequence[int]) -> Labels:
        """Returns channels that are no others."""
        size = int(np.prod(shape))
        while self._count + size > self._parent.size:
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
        labels = np.arange(self._count, self._count + size)
        self._parent[labels] = labels
        self._count += size
        return labels.reshape(shape)

    def roots(self, labels: Labels) -> Labels:
        """Returns one number for all channels that are one."""
        roots = np.maximum(labels, 0)
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                return np.where(labels < 0, -1, roots)
            roots = above

    def is_free(self, labels: Labels) -> bool:
        """Returns whether any of the channels may be scaled."""
        return bool(np.any(self.roots(labels) > 0))

    def unify(self, a: Labels, b: Labels, why: Reason) -> None:
        """Makes channels one, element by element; ``why``: of those that are one with 0 from now on."""
        left, right = np.broadcast_arrays(self.roots(a), self.roots(b))
        differ = (left != right) & (left >= 0) & (right >= 0)
        for x, y in np.unique(np.stack([left[differ], right[differ]], -1), axis=0):
            low, high = sorted((self._root(int(x)), self._root(int(y))))
            if low != high:
                self._parent[high] = low
                if low == 0:
                    self._why[high] = why

    def _root(self, x: int) -> int:
        while self._parent[x] != x:
            x = int(self._parent[x])
        return x

    def pin(self, labels: Labels, why: Reason) -> None:
        """Says that channels may not be scaled."""
        self.unify(labels, np.zeros((), np.int64), why)

    def why(self, label: int) -> Reason | None:
        """Returns why a channel may not be scaled; None of one that may."""
        while self._parent[label] != label and self._parent[label] != 0:
            label = int(self._parent[label])
        return self._why.get(label) if self._parent[label] == 0 else None

    def along(self, labels: Labels, axes: Sequence[int], why: Reason) -> Labels:
        """Returns channels of length 1 along some axes: those along them become one."""
        for axis in axes:
            first = np.take(labels, [0], axis)
            if labels.shape[axis] > 1:
                self.unify(labels, first, why)
            labels = first
        return labels


def compact(labels: Labels) -> Labels:
    """Returns the same channels, with length 1 along every axis that all are one along."""
    for axis, n in enumerate(labels.shape):
        if n > 1:
            first = np.take(labels, [0], axis)
            if np.array_equal(np.broadcast_to(first, labels.shape), labels):
                labels = first
    return labels


def varying(labels: Labels, lead: int) -> tuple[int, ...]:
    """Returns the axes of the value that its channels differ along."""
    return tuple(i - lead for i, n in enumerate(labels.shape) if i >= lead and n > 1)


def reshaped(labels: Labels, lead: int, old: Sequence[int], new: Sequence[int]) -> Labels:
    """Returns channels after a reshape of the value."""
    if 0 in old:
        return np.zeros([*labels.shape[:lead], *[1] * len(new)], np.int64)
    spread, final = list(labels.shape[:lead]), list(labels.shape[:lead])
    i = j = 0
    while i < len(old) or j < len(new):
        k, m = i + 1, j + 1
        a, b = (old[i] if i < len(old) else 1), (new[j] if j < len(new) else 1)
        while a != b:
            if a < b:
                a, k = a * old[k], k + 1
            else:
                b, m = b * new[m], m + 1
        k, m = min(k, len(old)), min(m, len(new))
        if all(n == 1 for n in labels.shape[lead + i : lead + k]):
            spread, final = spread + [1] * (k - i), final + [1] * (m - j)
        else:
            spread, final = spread + list(old[i:k]), final + list(new[j:m])
        i, j = k, m
    return compact(np.broadcast_to(labels, spread).reshape(final))


def transposed(labels: Labels, lead: int, order: Sequence[int]) -> Labels:
    """Returns channels after a transposition of the value."""
    return np.transpose(labels, (*range(lead), *(lead + i for i in order)))


def sliced(labels: Labels, lead: int, cuts: Sequence[slice]) -> Labels:
    """Returns channels of a part of the value."""
    index = [cut if n > 1 else slice(None) for cut, n in zip(cuts, labels.shape[lead:], strict=True)]
    return labels[(slice(None),) * lead + tuple(index)]


def embedded(labels: Labels, lead: int, cuts: Sequence[slice], full: Sequence[int]) -> Labels:
    """Returns channels of a value of which this is a part: -1 elsewhere."""
    whole = [cut == slice(0, n, 1) for cut, n in zip(cuts, full, strict=True)]
    if all(whole):
        return labels
    shape = [
        *labels.shape[:lead],
        *(m if w else n for w, n, m in zip(whole, full, labels.shape[lead:], strict=True)),
    ]
    scattered = np.full(shape, -1, np.int64)
    index = [slice(None) if w else cut for w, cut in zip(whole, cuts, strict=True)]
    scattered[(slice(None),) * lead + tuple(index)] = labels
    return scattered


def concatenated(parts: Sequence[Labels], lead: int, axis: int, lengths: Sequence[int]) -> Labels:
    """Returns channels of values put together along an axis."""
    at = lead + axis
    shape = list(np.broadcast_shapes(*((*p.shape[:at], 1, *p.shape[at + 1 :]) for p in parts)))
    full = [np.broadcast_to(p, [*shape[:at], n, *shape[at + 1 :]]) for p, n in zip(parts, lengths, strict=True)]
    return compact(np.concatenate(full, at))


def placed(labels: Labels, lead: int, places: Sequence[int | None], rank: int) -> Labels:
    """Returns channels of a value whose axis ``places[i]`` is axis ``i`` of these; others have length 1, None is left out."""
    kept = [i for i, place in enumerate(places) if place is not None]
    gone = tuple(lead + i for i, place in enumerate(places) if place is None)
    labels = np.squeeze(labels, gone)
    order = sorted(range(len(kept)), key=lambda i: places[kept[i]] or 0)
    labels = transposed(labels, lead, order)
    targets = {places[kept[i]]: n for i, n in zip(order, labels.shape[lead:], strict=True)}
    return labels.reshape([*labels.shape[:lead], *(targets.get(i, 1) for i in range(rank))])


def deeper(labels: Labels, depth: int, lead: int) -> Labels:
    """Returns channels of a value made outside, as they are inside ``lead - depth`` more loops."""
    return labels.reshape([*labels.shape[:depth], *[1] * (lead - depth), *labels.shape[depth:]])
