"""The 0/1 knapsack over byte sizes: which images to have, when not all fit. Exact, or honest about how far from it."""

from bisect import bisect_right
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter

import msgspec

# Good enough: no choice can be better by more than this part. Half of what the design allows.
TOLERANCE = 0.0002
# How many partial choices are looked at in all, some 40 ms of a slow core, before the search ends with what it has.
# What is left of them bounds how many are followed at once.
WORK = 20_000
_STEPS_AHEAD = 16
_LEAST_WIDTH = 50
# How many single items are swapped at most before the search.
_SWAPS = 20


class Item(msgspec.Struct, frozen=True):
    """Something to have, whole or not at all."""

    name: str
    size_bytes: int
    value_bytes: float
    """What having it saves; an item of no positive value is never chosen."""


@dataclass(frozen=True)
class Choice:
    """What was chosen, and how good it is."""

    names: frozenset[str]
    value_bytes: float
    bound_bytes: float
    """No choice can be worth more than this."""

    @property
    def gap(self) -> float:
        """How far from the bound, as a part of it; 0 is proven optimal."""
        return 1 - self.value_bytes / self.bound_bytes if self.bound_bytes > 0 else 0.0


def choose(
    items: Iterable[Item],
    capacity_bytes: int,
    *,
    present: Collection[str] = (),
    tolerance: float = TOLERANCE,
    work: int = WORK,
) -> Choice:
    """Choose items of the greatest total value that fit into `capacity_bytes` together.

    Items are ordered by value per byte, and taken as they fit (greedy); then single items are swapped as long as that
    gains. If the linear bound is still further than the tolerance, items around the break, the first that greedy
    could not take, are left out or added in turn, nearest first, and only partial choices that can still beat the
    best one are followed. That ends soon when the optimum differs from greedy near the break only, which is so for
    nearly all real sizes; when it does not, the least promising are cut and the gap says what that may cost.

    Args:
        items: a few thousand at most, names distinct; their order makes no difference.
        capacity_bytes: what they may take together; zero or less chooses nothing.
        present: names chosen already: the choice is these, as they fit, and what fits beside them, unless another one
            is worth more. So nothing is changed for a gain that the tolerance hides.
        tolerance: stop looking for what is better by less than this part.
        work: partial choices to look at, in all.
    Returns: the choice, never over the capacity and never worse than greedy, with a bound on what is possible.
    Source: the expanding core with dominance and bounds of Pisinger, "A minimal algorithm for the 0-1 knapsack
        problem", Operations Research 45 (1997); linear bound: Dantzig 1957. The cut is ours.
    """
    fitting = [item for item in items if item.value_bytes > 0 and 0 < item.size_bytes <= capacity_bytes]
    fitting.sort(key=lambda item: (-item.value_bytes / item.size_bytes, -item.size_bytes, item.name))
    if not fitting:
        return Choice(frozenset(), 0.0, 0.0)
    core = _Core([item.size_bytes for item in fitting], [item.value_bytes for item in fitting], capacity_bytes)
    chosen, bound = core.solve([index for index, item in enumerate(fitting) if item.name in present], tolerance, work)
    value = sum(fitting[index].value_bytes for index in sorted(chosen))
    return Choice(frozenset(fitting[index].name for index in chosen), value, max(value, bound))


# What a partial choice changed from the greedy prefix: (position, the changes before), None for nothing.
_Changes = tuple[int, "_Changes"] | None
# Size, value, changes.
_State = tuple[int, float, _Changes]


class _Core:
    """The search for one knapsack; positions are in the order of density."""

    def __init__(self, sizes: list[int], values: list[float], capacity: int) -> None:
        self.sizes, self.values, self.capacity = sizes, values, capacity
        self.count = len(sizes)
        size_up_to = list(accumulate(sizes))
        self.break_at = next((index for index, size in enumerate(size_up_to) if size > capacity), self.count)

    def solve(self, present: list[int], tolerance: float, work: int) -> tuple[set[int], float]:
        """Returns: positions chosen, and a bound on the value of any choice."""
        best, best_value = self._greedy()
        least = best_value  # a choice has to be worth more to take the best one's place
        kept = self._fill(present)
        if self._value(kept) >= best_value:
            best, best_value = kept, self._value(kept)
            least = best_value * (1 + tolerance)
        bound = self._linear_bound()
        if best_value * (1 + tolerance) < bound:
            swapped, value = self._swap(best, bound / (1 + tolerance))
            if value > least:
                best, best_value, least = swapped, value, value
        if best_value * (1 + tolerance) >= bound:
            return best, bound
        prefix_size = sum(self.sizes[: self.break_at])
        prefix_value = sum(self.values[: self.break_at])
        states: list[_State] = [(prefix_size, prefix_value, None)]
        left, right = self.break_at - 1, self.break_at
        cut_bound = 0.0
        add_next = True
        while states and (left >= 0 or right < self.count):
            if right < self.count and (add_next or left < 0):
                states = _merge(states, right, self.sizes[right], self.values[right])
                right += 1
            else:
                states = _merge(states, left, -self.sizes[left], -self.values[left])
                left -= 1
            add_next = not add_next
            for size, value, changes in states:
                if size <= self.capacity and value > least:
                    # The states' values were summed in other orders; and what the tolerance hides may still have room.
                    found = self._fill(sorted(self._apply(changes)))
                    found_value = self._value(found)
                    if found_value > least:
                        best, best_value, least = found, found_value, found_value
            work -= len(states)
            width = max(_LEAST_WIDTH, work // _STEPS_AHEAD)
            states, dropped_bound = self._prune(states, left, right, best_value * (1 + tolerance), width)
            cut_bound = max(cut_bound, dropped_bound)
            if work < 0:
                return best, bound if states else min(bound, cut_bound)
        return best, min(bound, cut_bound)

    def _prune(
        self, states: list[_State], left: int, right: int, worth: float, width: int
    ) -> tuple[list[_State], float]:
        """Keep the states that can become worth more than `worth`, the `width` best of them at most.

        Returns: the states, and the greatest value that a dropped one could have become.
        """
        add_density = self.values[right] / self.sizes[right] if right < self.count else 0.0
        drop_density = self.values[left] / self.sizes[left] if left >= 0 else float("inf")
        bounded = []
        dropped_bound = 0.0
        for state in states:
            room = self.capacity - state[0]
            bound = state[1] + room * (add_density if room >= 0 else drop_density)
            if bound > worth:
                bounded.append((bound, state))
            elif bound > dropped_bound:
                dropped_bound = bound
        if len(bounded) > width:
            bounded.sort(key=itemgetter(0), reverse=True)
            dropped_bound = max(dropped_bound, bounded[width][0])
            del bounded[width:]
            bounded.sort(key=lambda pair: (pair[1][0], -pair[1][1]))
        return [state for _, state in bounded], dropped_bound

    def _linear_bound(self) -> float:
        """What the knapsack could hold at most if items could be cut."""
        whole = sum(self.values[: self.break_at])
        if self.break_at == self.count:
            return whole
        room = self.capacity - sum(self.sizes[: self.break_at])
        return whole + room * self.values[self.break_at] / self.sizes[self.break_at]

    def _apply(self, changes: _Changes) -> set[int]:
        chosen = set(range(self.break_at))
        while changes is not None:
            position, changes = changes
            chosen ^= {position}
        return chosen

    def _greedy(self) -> tuple[set[int], float]:
        """Take what fits by density, or the most valuable item and what fits beside it when that is worth more."""
        taken = self._fill(())
        value = self._value(taken)
        single = self._fill([max(range(self.count), key=lambda index: (self.values[index], -index))])
        return (taken, value) if value >= self._value(single) else (single, self._value(single))

    def _fill(self, first: Iterable[int]) -> set[int]:
        """Take what fits of these, then what fits of the others; each in the order given."""
        taken: set[int] = set()
        room = self.capacity
        for index in (*first, *range(self.count)):
            if self.sizes[index] <= room and index not in taken:
                taken.add(index)
                room -= self.sizes[index]
        return taken

    def _value(self, chosen: set[int]) -> float:
        # In one order always: sums of floats depend on it.
        return sum(self.values[index] for index in sorted(chosen))

    def _more_valuable(self, one: int, other: int) -> int:
        return one if self.values[one] >= self.values[other] else other

    def _swap(self, chosen: set[int], enough: float) -> tuple[set[int], float]:
        """Swap one item for a more valuable one that fits in its place, the best swap first, and fill what is left.

        Ends when the value is `enough`, when no swap gains, or after some swaps.
        """
        by_size = sorted(range(self.count), key=lambda index: (self.sizes[index], index))
        for _ in range(_SWAPS):
            room = self.capacity - sum(self.sizes[index] for index in chosen)
            outside = [index for index in by_size if index not in chosen]
            outside_sizes = [self.sizes[index] for index in outside]
            most_valuable = list(accumulate(outside, self._more_valuable))
            gain, swap = 0.0, None
            for index in sorted(chosen):
                fitting = bisect_right(outside_sizes, room + self.sizes[index])
                if fitting and self.values[most_valuable[fitting - 1]] - self.values[index] > gain:
                    swap = (index, most_valuable[fitting - 1])
                    gain = self.values[swap[1]] - self.values[index]
            if swap is None:
                break
            chosen = self._fill(chosen ^ set(swap))
            if self._value(chosen) >= enough:
                break
        return chosen, self._value(chosen)


def _merge(states: list[_State], position: int, size: int, value: float) -> list[_State]:
    """Give each state a twin with the item changed; drop those that are larger and worth no more than another.

    Args:
        states: by size ascending, value strictly ascending.
        size, value: what the change adds; negative when the item is left out.
    """
    both = [*states, *((old_size + size, old_value + value, (position, old)) for old_size, old_value, old in states)]
    both.sort(key=lambda state: (state[0], -state[1]))
    kept: list[_State] = []
    highest = float("-inf")
    for state in both:
        if state[1] > highest:
            kept.append(state)
            highest = state[1]
    return kept
