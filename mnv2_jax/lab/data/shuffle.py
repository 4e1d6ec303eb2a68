"""Which example stands where: a pure function of the seed, so that any restart repeats it.

Training is one endless stream of examples: the epochs' permutations laid end to end and cut into
batches. The example at a global position, and the random numbers that augment it, depend on (seed,
position) only: not on the step a run restarts at, nor on the number of hosts or threads.
"""

import functools
import threading

import numpy as np

SHUFFLE, AUGMENT = 0, 1  # streams of random bits that never overlap


def philox(seed: int, index: int, stream: int) -> np.random.Philox:
    """Makes the counter-based bit generator of one (seed, index) in one of the streams above."""
    key = np.array([seed % 2**64, index], np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], np.uint64))


def example_ids(n: int, seed: int, epoch: int) -> np.ndarray:
    """Permutes the n examples of a data set for one epoch, counted from 0: int64 (n,).

    It is the order of n Philox draws. Philox is a published algorithm and numpy keeps raw bits
    stable, so the permutation is the same in every version, unlike `Generator.permutation`.

    >>> example_ids(6, seed=0, epoch=0)
    array([0, 2, 1, 5, 4, 3])
    """
    return np.argsort(philox(seed, epoch, SHUFFLE).random_raw(n), kind="stable")


_epochs = functools.lru_cache(maxsize=4)(example_ids)
_sorting = threading.Lock()  # one thread sorts a new epoch, the others wait for it


def stream_ids(n: int, seed: int, start: int, count: int) -> np.ndarray:
    """Looks up the examples at global positions start, ..., start + count - 1.

    Position g is example `example_ids(n, seed, g // n)[g % n]`.

    >>> stream_ids(6, seed=0, start=4, count=3)[:2]
    array([4, 3])
    """
    end, epochs = start + count, range(start // n, -(-(start + count) // n))
    with _sorting:
        orders = [_epochs(n, seed, epoch) for epoch in epochs]
    parts = [o[max(0, start - e * n) : end - e * n] for e, o in zip(epochs, orders, strict=True)]
    return np.concatenate(parts)


def batch_ids(n: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Looks up the examples of one global batch: int64 (batch_size,).

    Batches may straddle two epochs (or more, when the batch is larger than the set); every example
    comes exactly once an epoch.

    >>> batch_ids(6, batch_size=2, seed=0, step=1)
    array([1, 5])
    """
    return stream_ids(n, seed, step * batch_size, batch_size)


def record_rng(seed: int, position: int) -> np.random.Generator:
    """Makes the random numbers that augment the example at one global position."""
    return np.random.Generator(philox(seed, position, AUGMENT))
