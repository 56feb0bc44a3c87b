"""What the benchmarks of the choice share: sizes as sites have them, and the method of the tool before this one."""

import random
from collections.abc import Sequence

from scratch_slurm.domain.knapsack import Item

GIB, TIB = 2**30, 2**40


def log_normal_size(rng: random.Random) -> int:
    while True:
        size = rng.lognormvariate(0.0, 1.5) * 60 * GIB
        if GIB <= size <= 2 * TIB:
            return int(size)


def thousandths(items: Sequence[Item], capacity: int) -> set[int]:
    """The classic dynamic programme, sizes rounded to thousandths of the capacity: so the set may not fit."""
    units = 1000
    sizes = [round(item.size_bytes * units / capacity) for item in items]
    best = [0.0] * (units + 1)
    taken_at = []
    for item, size in zip(items, sizes, strict=True):
        taken = bytearray(units + 1)
        if item.value_bytes > 0 and size <= units:
            with_it = [0.0] * size + [value + item.value_bytes for value in best[: units + 1 - size]]
            for room in range(size, units + 1):
                if with_it[room] > best[room]:
                    best[room] = with_it[room]
                    taken[room] = 1
        taken_at.append(taken)
    chosen, room = set(), units
    for index in range(len(items) - 1, -1, -1):
        if taken_at[index][room]:
            chosen.add(index)
            room -= sizes[index]
    return chosen
