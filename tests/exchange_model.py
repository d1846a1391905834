"""An explicit-state model of the exchange between blocks (csrc/cuda/exchange.cuh): every interleaving of a
few blocks over a few iterations, with stores that others see late and in any order, until a fence.

A block is two threads that meet at a barrier in every iteration, one that publishes and one that resets. A
word of a ring slot is not ready or holds the number of the iteration that published it. What is wrong is a
word of another iteration than the one waited for, or blocks that wait for ever.
"""

from __future__ import annotations

from dataclasses import dataclass

NOT_READY = -1
PUBLISHER, RESETTER = 0, 1


@dataclass(frozen=True)
class Protocol:
    """The exchange, or a wrong one. Fences order what the named threads have stored before."""

    slots: int = 4  # of the ring: iteration i publishes to slot i % slots
    resets: int = 2  # iteration i resets slot (i + resets) % slots
    fences_before_barrier: tuple[int, ...] = (PUBLISHER, RESETTER)
    fences_after_reset: tuple[int, ...] = ()  # right after it, where they would be in everybody's way
    share: int = 1  # block b resets word (b + share) % blocks of a slot, another's where it is not 0


# The stores of a block that others have not seen: (thread, address, value), in program order.
Pending = tuple[tuple[int, int, int], ...]
# Of each block: the iteration, the words it has read of the last one's slot, its pending stores.
Block = tuple[int, int, Pending]
State = tuple[tuple[Block, ...], tuple[int, ...]]


class Explorer:
    def __init__(self, protocol: Protocol, members: int, steps: int) -> None:
        self.protocol, self.members, self.steps = protocol, members, steps

    def explore(self) -> tuple[str, int]:
        """What goes wrong, or nothing, and how many states were visited."""
        start: State = (((0, 0, ()),) * self.members, (NOT_READY,) * (self.members * self.protocol.slots))
        seen, front = {start}, [start]
        while front:
            state = front.pop()
            following, wrong = self.successors(state)
            if wrong:
                return wrong, len(seen)
            if not following and any(block[0] <= self.steps for block in state[0]):
                return "deadlock", len(seen)
            for after in following:
                if after not in seen:
                    seen.add(after)
                    front.append(after)
        return "", len(seen)

    def successors(self, state: State) -> tuple[list[State], str]:
        blocks, memory = state
        following: list[State] = []
        for b, (iteration, read, pending) in enumerate(blocks):
            # A store is seen, none of the same word before an earlier one.
            first: set[int] = set()
            for n, (_, address, value) in enumerate(pending):
                if address not in first:
                    first.add(address)
                    rest = pending[:n] + pending[n + 1 :]
                    following.append(
                        (
                            _replaced(blocks, b, (iteration, read, rest)),
                            _replaced(memory, address, value),
                        )
                    )
            if iteration > self.steps:
                continue
            missing = ~read & ((1 << self.members) - 1) if iteration > 0 else 0
            if not missing:
                following.append(self.acted(blocks, memory, b))
            for word in range(self.members):
                if missing >> word & 1:
                    value = self.load(memory, pending, self.address(iteration - 1, word))
                    if value == NOT_READY:
                        continue
                    if value != iteration - 1:
                        return [], f"block {b} reads iteration {value}'s word for {iteration - 1}'s"
                    following.append((_replaced(blocks, b, (iteration, read | 1 << word, pending)), memory))
        return following, ""

    def address(self, iteration: int, word: int) -> int:
        return iteration % self.protocol.slots * self.members + word

    @staticmethod
    def load(memory: tuple[int, ...], pending: Pending, address: int) -> int:
        """A block sees its own stores at once."""
        return next((value for _, a, value in reversed(pending) if a == address), memory[address])

    def acted(self, blocks: tuple[Block, ...], memory: tuple[int, ...], b: int) -> State:
        """What a block does when it has read all: nobody sees a difference to doing it bit by bit."""
        protocol, (iteration, _, pending) = self.protocol, blocks[b]
        memory, pending = self.fenced(memory, pending, protocol.fences_before_barrier)
        pending = (*pending, (PUBLISHER, self.address(iteration, b), iteration))
        word = (b + protocol.share) % self.members
        pending = (*pending, (RESETTER, self.address(iteration + protocol.resets, word), NOT_READY))
        memory, pending = self.fenced(memory, pending, protocol.fences_after_reset)
        return _replaced(blocks, b, (iteration + 1, 0, pending)), memory

    @staticmethod
    def fenced(
        memory: tuple[int, ...], pending: Pending, threads: tuple[int, ...]
    ) -> tuple[tuple[int, ...], Pending]:
        for thread, address, value in pending:
            if thread in threads:
                memory = _replaced(memory, address, value)
        return memory, tuple(store for store in pending if store[0] not in threads)


def _replaced(values: tuple, index: int, value: object) -> tuple:
    return (*values[:index], value, *values[index + 1 :])
