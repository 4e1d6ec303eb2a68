"""Optimizers, learning-rate schedules and weight-decay masks, as the paper's recipes have them.

`optax.rmsprop` with its defaults is another optimizer than the paper's: TensorFlow's, which the
authors used, starts the accumulator at 1 and has epsilon 1.0 inside the root (slim's release).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from optax import contrib

from mnv2_jax.errors import UsageError

ADAM_SHARE = 0.06  # of Muon's learning rate: where that is 0.05, the usual 0.003


def tf_rmsprop(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.9, momentum: float = 0.9,
    epsilon: float = 1.0,
) -> optax.GradientTransformation:  # fmt: skip
    """TensorFlow's RMSProp: ms = decay·ms + (1-decay)·g², m = momentum·m + lr·g/√(ms+ε), w -= m.

    `ms` starts at 1. The learning rate stands inside the momentum, so a change of it takes effect
    gradually. Paper, Sec. 6.1: decay and momentum 0.9; slim: epsilon 1.0.
    """
    tensorflow = {"initial_scale": 1.0, "eps_in_sqrt": True}
    return optax.rmsprop(learning_rate, decay, eps=epsilon, momentum=momentum, **tensorflow)


def decay_mask(params: Any, depthwise: bool) -> Any:
    """Marks the parameters that weight decay acts on: kernels, never batch norm nor biases.

    `depthwise` says whether depthwise kernels decay too; slim's recipe leaves them out.
    """

    def decays(path: tuple[Any, ...], leaf: Any) -> bool:
        names = [key.key for key in path]
        return names[-1] == "kernel" and (depthwise or "filter" not in names)

    return jax.tree_util.tree_map_with_path(decays, params)


def muon(
    learning_rate: optax.ScalarOrSchedule, momentum: float = 0.9, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024): the momentum of a convolution's kernel, made orthogonal.

    A kernel is a matrix of its inputs by its outputs. Steps have the size of Adam's (2502.16982,
    Sec. 2.2) and weight decay is decoupled. Depthwise kernels, which are no matrices, the
    classifier, batch norm and biases are Adam's, at `ADAM_SHARE` of the rate and without decay.
    """

    def matrix(path: tuple[Any, ...], leaf: Any) -> contrib.MuonDimensionNumbers | None:
        dense = path[-1].key == "kernel" and leaf.ndim == 4
        if not dense or any(key.key == "filter" for key in path):
            return None
        return contrib.MuonDimensionNumbers((0, 1, 2), 3)

    return contrib.muon(
        learning_rate, beta=momentum, weight_decay=weight_decay, consistent_rms=0.2,
        adam_learning_rate=lambda step: ADAM_SHARE * _value(learning_rate, step),
        muon_weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(
            matrix, params
        ),
    )  # fmt: skip


def _value(rate: optax.ScalarOrSchedule, step: Any) -> Any:
    return rate(step) if callable(rate) else rate


# Names of a configuration -> (its `optimizer` part, steps, steps in an epoch) -> schedule.
SCHEDULES: Mapping[str, Callable[[Any, int, float], optax.Schedule]] = {
    "exponential": lambda c, n, epoch: optax.exponential_decay(
        c.learning_rate, max(1, round(c.decay_epochs * epoch)), c.decay_rate, staircase=c.staircase
    ),
    "cosine": lambda c, n, epoch: optax.cosine_decay_schedule(c.learning_rate, max(1, n)),
    "poly": lambda c, n, epoch: optax.polynomial_schedule(c.learning_rate, 0.0, c.power, max(1, n)),
    "constant": lambda c, n, epoch: optax.constant_schedule(c.learning_rate),
}


def make_schedule(config: Any, steps: int, epoch_steps: float) -> optax.Schedule:
    """Returns step -> learning rate: linear warm-up from 0, then the named schedule.

    `config` is the `optimizer` part of a configuration; an epoch may end between two steps.
    """
    warmup = round(config.warmup_epochs * epoch_steps)
    if not 0 <= warmup < max(1, steps):
        raise UsageError(
            f"optimizer.warmup_epochs is {config.warmup_epochs}, which is {warmup} of {steps} "
            "steps: shorten it, or train for longer."
        )
    main = SCHEDULES[config.schedule](config, steps - warmup, epoch_steps)
    if not warmup:
        return main
    ramp = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([ramp, main], [warmup])


Transform = optax.GradientTransformation

# Names of a configuration -> (its `optimizer` part, schedule, weight decay) -> optimizer.
OPTIMIZERS: Mapping[str, Callable[[Any, optax.Schedule, Transform], Transform]] = {
    "rmsprop": lambda c, rate, decay: optax.chain(
        decay, tf_rmsprop(rate, c.decay, c.momentum, c.epsilon)
    ),
    "sgd": lambda c, rate, decay: optax.chain(
        decay, optax.sgd(rate, c.momentum or None, nesterov=c.nesterov)
    ),
    "adamw": lambda c, rate, decay: optax.chain(
        optax.scale_by_adam(c.beta1, c.beta2, c.epsilon), decay, optax.scale_by_learning_rate(rate)
    ),
    "muon": lambda c, rate, decay: muon(rate, c.momentum, c.weight_decay),
}


def make_optimizer(
    config: Any, schedule: optax.Schedule, frozen: tuple[str, ...] = ()
) -> Transform:
    """Builds the optimizer that the `optimizer` part of a configuration describes.

    Weight decay is added to the gradient before all else, as L2 regularisation is in the recipes of
    the paper; AdamW and Muon decouple it. `frozen` are beginnings of names of top-level modules
    that are not trained.
    """
    weight_decay = optax.add_decayed_weights(
        config.weight_decay, mask=lambda params: decay_mask(params, config.decay_depthwise)
    )
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    chain = optax.chain(clip, OPTIMIZERS[config.name](config, schedule, weight_decay))
    if not frozen:
        return chain

    def label(path: tuple[Any, ...], leaf: Any) -> str:
        return "freeze" if path[0].key.startswith(frozen) else "train"

    return optax.multi_transform(
        {"train": chain, "freeze": optax.set_to_zero()},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )
