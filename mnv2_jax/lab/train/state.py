"""The state of a training run: arrays only, so that a checkpoint is dull."""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Int


@flax.struct.dataclass
class TrainState:
    """Everything that a training step reads and writes.

    Attributes:
      step: training steps done, skipped ones included.
      params, batch_stats: of the model.
      opt_state: of the optax optimizer.
      ema: moving averages of `params` and `batch_stats` under these names; {} where switched off.
      skipped: steps whose loss or gradient was not finite, and which changed nothing but `step`.
      skipped_in_a_row: those since the last good step.
    """

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]

    @property
    def variables(self) -> dict[str, Any]:
        """The model's variables as trained."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def new_state(variables: dict[str, Any], optimizer: Any, ema: bool) -> TrainState:
    """Returns the state before the first step."""
    params, stats = variables["params"], variables.get("batch_stats", {})
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        batch_stats=stats,
        opt_state=optimizer.init(params),
        ema={"params": params, "batch_stats": stats} if ema else {},
        skipped=zero,
        skipped_in_a_row=zero,
    )
