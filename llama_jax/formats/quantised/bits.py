"""Numbers of a few bits, in bytes and in words."""

import numpy as np


def fields(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The numbers that lie one after the other in rows of words, the lowest bits first.

    A number may begin in one word and end in the next, as those of three bits do.

    Args:
      words: whole numbers, `[..., n]`, little-endian.
      bits: how many a number has, 1 to 8.
      count: numbers of a row; what follows is padding.
    """
    stream = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return stream[..., :count]
    if bits in (2, 4):
        apart = np.empty((*stream.shape, 8 // bits), np.uint8)
        for i in range(8 // bits):
            np.bitwise_and(stream >> np.uint8(bits * i), 2**bits - 1, out=apart[..., i])
        return apart.reshape(*stream.shape[:-1], -1)[..., :count]
    single = np.unpackbits(stream, axis=-1, count=count * bits, bitorder="little")
    single = single.reshape(*stream.shape[:-1], count, bits)
    return np.packbits(single, axis=-1, bitorder="little")[..., 0]


def words(count: int, bits: int) -> int:
    """How many words of 32 bits so many numbers take."""
    return -(-count * bits // 32)


def nibbles(stored: np.ndarray, high_first: bool = False) -> np.ndarray:
    """Two numbers of each byte, `[..., n]` to `[..., 2 n]`; of most formats the low one first."""
    apart = np.empty((*stored.shape, 2), np.uint8)
    apart[..., 0 + high_first] = stored & 15
    apart[..., 1 - high_first] = stored >> 4
    return apart.reshape(*stored.shape[:-1], -1)
