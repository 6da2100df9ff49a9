"""One block of memory for all buffers: those that are never live together share it."""

import dataclasses
from collections.abc import Mapping, Sequence

from .schedule import Buffer, Repeat, Stage, Store

ALIGNMENT = 8
"""Bytes: of the widest element."""


@dataclasses.dataclass(frozen=True)
class Span:
    """When a buffer is live: the first and the last stage that touches it."""

    first: int
    last: int

    def overlaps(self, other: "Span") -> bool:
        """Returns whether both are live at some stage."""
        return self.first <= other.last and other.first <= self.last


def spans(stages: Sequence[Stage]) -> dict[Buffer, Span]:
    """Returns when each buffer of the arena is live.

    What a loop reads or keeps from turn to turn is live for the whole loop.
    """
    lives: dict[Buffer, Span] = {}
    count = 0

    def touch(buffer: Buffer, first: int, last: int) -> None:
        if buffer.kind == "arena":
            old = lives.get(buffer, Span(first, last))
            lives[buffer] = Span(min(old.first, first), max(old.last, last))

    def visit(stages: Sequence[Stage]) -> list[Store]:
        nonlocal count
        stores: list[Store] = []
        for stage in stages:
            if isinstance(stage, Store):
                for buffer in (stage.buffer, *stage.reads):
                    touch(buffer, count, count)
                stores.append(stage)
                count += 1
                continue
            start = count
            inner = visit(stage.stages)
            own = {store.buffer for store in inner if store.loop is not stage.loop} - _kept(stage)
            for buffer in {b for store in inner for b in (store.buffer, *store.reads)} - own:
                touch(buffer, start, count - 1)
            stores += inner
        return stores

    visit(stages)
    return lives


def _kept(repeat: Repeat) -> set[Buffer]:
    """What a loop reads before it writes it: the carries of the next turn are written last."""
    seen: set[Buffer] = set()
    kept: set[Buffer] = set()

    def visit(stages: Sequence[Stage]) -> None:
        for stage in stages:
            if isinstance(stage, Store):
                kept.update(stage.reads - seen)
                seen.add(stage.buffer)
            else:
                visit(stage.stages)

    visit(repeat.stages)
    return kept


def place(sizes: Mapping[Buffer, int], live: Mapping[Buffer, Span]) -> int:
    """Gives every buffer its offset and returns the bytes of the arena.

    Largest first, each into the smallest gap between those it is live with that holds it.

    Args:
        sizes: bytes by buffer.
        live: when each is.
    """
    placed: list[Buffer] = []
    end = 0
    for buffer in sorted(live, key=lambda b: (-sizes[b], live[b].first, b.index)):
        size = -(-sizes[buffer] // ALIGNMENT) * ALIGNMENT
        taken = sorted((b.offset, b.offset + sizes[b]) for b in placed if live[b].overlaps(live[buffer]))
        buffer.offset = _gap(size, taken)
        placed.append(buffer)
        end = max(end, buffer.offset + size)
    return end


def _gap(size: int, taken: Sequence[tuple[int, int]]) -> int:
    best: tuple[int, int] | None = None
    start = 0
    for low, high in taken:
        room = low - start
        if room >= size and (best is None or room < best[0]):
            best = room, start
        start = max(start, -(-high // ALIGNMENT) * ALIGNMENT)
    return start if best is None else best[1]
