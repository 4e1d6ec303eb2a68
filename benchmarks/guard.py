"""What do the guard against values that are not finite, and the hashes of checkpoints, cost?

The guard is timed by itself, as a program that only checks a state and chooses between the new and
the old one; inside a training step XLA fuses it with the update, so this is an upper bound.
"""

import argparse
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import optax

from benchmarks.contenders import jax_train
from benchmarks.harness import save
from benchmarks.train_cpu import CASES
from mnv2_jax import build
from mnv2_jax.lab.train.checkpoint import fingerprints
from mnv2_jax.lab.train.step import choose, new_state, tree_norm


def state_of(width, spec, classes, size):
    """A whole training state: parameters, statistics, momentum and averages."""
    model = build(width=width, spec=spec, num_classes=classes)
    image = jnp.zeros((1, size, size, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return new_state(variables, optax.sgd(0.1, momentum=0.9), True)


def seconds(function, rounds):
    """The median time of a call, after one that warms up."""
    found = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(function())
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


@partial(jax.jit, donate_argnums=1)
def guard(new, old):
    """What the step does to leave everything as it was after one that is not finite."""
    return choose(jnp.isfinite(tree_norm((new.params, new.batch_stats))), new, old)


def repeated(step, state):
    """A step whose every call takes over the state that the last one gave, as training does."""
    kept = [jax.tree.map(lambda leaf: leaf + 0, state)]

    def call():
        kept[0] = step(state, kept[0])
        return kept[0]

    return call


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["224", "32"])
    parser.add_argument("--minutes", type=float, default=5.0, help="between checkpoints")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    rows = []
    for case in arguments.cases:
        options = CASES[case]
        step = seconds(jax_train(threads=2, **options), arguments.rounds)
        state = state_of(**{k: v for k, v in options.items() if k != "batch"})
        guarded = seconds(repeated(guard, state), arguments.rounds)
        hashed = seconds(lambda state=state: fingerprints(state), arguments.rounds)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        rows.append(
            {
                "": f"{options['size']}×{options['size']}, batch {options['batch']}",
                "state MB": f"{size / 1e6:.1f}",
                "step ms": f"{1e3 * step:.0f}",
                "guard ms": f"{1e3 * guarded:.2f}",
                "of a step": f"{guarded / step:.2%}",
                "hashes ms": f"{1e3 * hashed:.0f}",
                "of the training": f"{hashed / (60 * arguments.minutes):.3%}",
            }
        )
    note = (
        "The guard alone, an upper bound; hashes once in "
        f"{arguments.minutes:g} minutes, the default of `checkpoint_minutes`."
    )
    save("guard", "The cost of the guard and of the hashes", {"On this CPU": rows}, note)


if __name__ == "__main__":
    main()
