"""What is timed: each function builds one step, ready to be called again and again."""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np


def jax_network(plain: bool, **options):
    """This project's network; or, `plain`, with Flax's own convolutions and batch norm."""
    import flax.linen as nn
    import jax

    from mnv2_jax.models import layers
    from mnv2_jax.models.build import build

    if not plain:
        return build(**options)

    class StockNorm(nn.BatchNorm):
        def __call__(self, x, mask=None, activation=lambda x: x, operands=None):
            return activation(super().__call__(x))

    layers.BatchNorm = StockNorm
    return build(**options, convolve=jax.lax.conv_general_dilated)


def jax_train(threads, batch, size, width, spec, classes, plain=False):
    """A step of gradient descent under jit."""
    import jax
    import jax.numpy as jnp

    model = jax_network(plain, width=width, spec=spec, num_classes=classes, dialect="torchvision")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(batch, size, size, 3)), jnp.float32)
    labels = jnp.arange(batch) % classes
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])

    def step(params, stats):
        def loss(params):
            out, update = model.apply(
                {"params": params, "batch_stats": stats}, images, train=True,
                mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)})  # fmt: skip
            return -jax.nn.log_softmax(out)[jnp.arange(batch), labels].mean(), update["batch_stats"]

        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), stats, value

    compiled = jax.jit(step, donate_argnums=(0, 1))
    state = [variables["params"], variables["batch_stats"]]

    def run():
        *state[:], value = compiled(*state)
        value.block_until_ready()

    return run


def jax_infer(threads, batch, size, form, width=1.0):
    """Logits of a batch: `folded`, `module` (the network as it is) or `plain` (Flax's own)."""
    import jax
    import jax.numpy as jnp

    from mnv2_jax import fold, folded_apply

    model = jax_network(form == "plain", width=width, dialect="torchvision")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(batch, size, size, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    if form == "folded":
        apply, variables = partial(folded_apply, model), fold(model, variables)
    else:
        apply = model.apply
    compiled = jax.jit(apply)
    return lambda: compiled(variables, images).block_until_ready()


def torch_network(threads, **options):
    import torch

    from benchmarks.peers import mobilenet_v2

    torch.set_num_threads(threads)
    return mobilenet_v2(**options).to(memory_format=torch.channels_last)


def torch_train(threads, batch, size, width, spec, classes):
    """A step of gradient descent in PyTorch, eager, channels last."""
    import torch

    network = torch_network(threads, width=width, spec=spec, classes=classes)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.arange(batch) % classes

    def run():
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return run


def torch_infer(threads, batch, size, scripted=False):
    """Logits of a batch in PyTorch, eager or scripted and frozen (batch norm folded)."""
    import torch

    network = torch_network(threads).eval()
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    if scripted:
        network = torch.jit.optimize_for_inference(torch.jit.trace(network, images))

    def run():
        with torch.inference_mode():
            network(images)

    return run


def onnx_file(batch, size):
    from benchmarks.peers import write_onnx

    path = Path(tempfile.gettempdir()) / f"mobilenet_v2_{batch}_{size}.onnx"
    if not path.exists():
        write_onnx(path, batch, size)
    return path


def onnxruntime_infer(threads, batch, size):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = str(onnx_file(batch, size))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.zeros((batch, 3, size, size), np.float32)}
    return lambda: session.run(None, feed)


def openvino_infer(threads, batch, size):
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    network = openvino.compile_model(str(onnx_file(batch, size)), "CPU", options)
    images = np.zeros((batch, 3, size, size), np.float32)
    return lambda: network([images])
