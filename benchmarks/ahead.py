"""What do the forms for TPUs and GPUs save? As their compilers count, for devices not at hand.

    python -m benchmarks.ahead              needs libtpu: pip install 'mnv2_jax[plan-tpu]'
    python -m benchmarks.ahead --on h100    needs 'mnv2_jax[plan-gpu]'

MobileNetV2 1.0 at 224 pixels, batch 128, bfloat16, compiled for one device: prediction, that with
batch norm folded into the convolutions, as `mnv2 predict` does it, and a step of SGD. Once as the
package computes there, and once with convolutions and batch norm of plain Flax.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import SingleDeviceSharding

from benchmarks.contenders import jax_network
from benchmarks.harness import save
from mnv2_jax.inference.run import fold, folded_apply
from mnv2_jax.lab.devices.sharding import shapes_of
from mnv2_jax.lab.train.ahead import count, place_of
from mnv2_jax.ops.platform import compiled_for

FORMS = {"mnv2_jax": False, "plain Flax": True}  # which changes the layers that follow: last


def programs(model: Any, batch: int, size: int) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Returns functions by what they do, with the shapes of their arguments."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    params, stats = variables["params"], variables["batch_stats"]
    optimizer = optax.sgd(0.1, momentum=0.9)

    def step(params: Any, stats: Any, state: Any, images: Any, labels: Any) -> Any:
        def loss(params: Any) -> Any:
            given = {"params": params, "batch_stats": stats}
            logits, new = model.apply(given, images, train=True, mutable=["batch_stats"])
            each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return each.mean(), new["batch_stats"]

        (_, new), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), new, state

    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    with compiled_for("cpu"):  # where it is computed once
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables)
        folded = jax.eval_shape(lambda: fold(model, zeros, (size, size)))
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    state = jax.eval_shape(optimizer.init, params)
    return {
        "prediction": (jax.jit(model.apply), (variables, images)),
        "folded prediction": (jax.jit(partial(folded_apply, model)), (folded, images)),
        "training": (
            jax.jit(step, donate_argnums=(0, 1, 2)),
            (params, stats, state, images, labels),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on", default="v5e-1")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    place = place_of(arguments.on)
    put = partial(shapes_of, sharding=SingleDeviceSharding(place.devices[0]))
    rows = []
    for name, plain in FORMS.items():
        model = jax_network(plain, dtype=jnp.bfloat16, dropout=0.0)
        known = programs(model, arguments.batch, arguments.size)
        for what, (function, given) in known.items():
            with compiled_for(place.platform):
                program = function.lower(*map(put, given)).compile()
            found = count(program.as_text())
            rows.append({
                "program": what, "form": name, "million cycles": f"{found.cycles / 1e6:.2f}",
                "kernels": str(found.kernels),
                "MB an image": f"{found.traffic / arguments.batch / 1e6:.1f}",
                "temporaries, MB": f"{program.memory_analysis().temp_size_in_bytes / 1e6:.0f}",
            })  # fmt: skip
            print(rows[-1], flush=True)
    save(
        "ahead" if arguments.on == "v5e-1" else f"ahead_{arguments.on}",
        "Forms for TPUs and GPUs, by their compilers' count",
        {f"{arguments.on}, {arguments.size} pixels, batch {arguments.batch}, bfloat16": rows},
        "**Estimated by the compiler, not measured.** Cycles, which only TPUs' compiler tells, "
        "are its own sum over all operations; a step is one of SGD with momentum.",
    )


if __name__ == "__main__":
    main()
