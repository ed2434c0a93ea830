"""What the tasks share."""

import tracemalloc

import numpy as np

from llama_jax.data.fields import ENTRY, Memory

# Four bytes a token, an array and a place in the dict for each text of 1,000; a list took 36.
BYTES_A_TOKEN = 4.5


def test_a_memory_of_texts_takes_little_more_than_their_ids():
    memory = Memory(lambda first: list(range(first, first + 1000)))
    tracemalloc.start()
    for first in range(1000, 1500):
        memory(first)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < BYTES_A_TOKEN * 500 * 1000


def test_a_memory_keeps_no_more_than_its_bytes_and_knows_what_it_keeps():
    asked = []

    def ids(size):
        asked.append(size)
        return [size] * size

    memory = Memory(ids, limit=5 * (ENTRY + 4 * 100))
    for size in (100, 99, 100, 99, 98, 97, 96, 95, 94):
        found = memory(size)
        assert found.dtype == np.int32 and found.tolist() == [size] * size
        kept = sum(known.nbytes for known in memory.known.values())
        assert kept <= memory.held <= memory.limit
    assert asked == [100, 99, 98, 97, 96, 95, 94]
    pairs = Memory(lambda size: ([1] * size, [2]), limit=5 * ENTRY)
    assert [pairs(size)[0].tolist() for size in (1, 2, 1)] == [[1], [1, 1], [1]]
    assert len(pairs.known) == 2 and pairs(3)[1].tolist() == [2] and len(pairs.known) == 1
    assert memory(94) is memory.known[94] and 100 not in memory.known
