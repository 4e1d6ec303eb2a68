"""What is timed: each function builds one step, ready to be called again and again."""

import importlib
import tempfile
from functools import partial
from pathlib import Path

import numpy as np


def pictures(*shape):
    """Random images: zeros would make some processors' arithmetic faster than it is."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def jax_network(plain: bool, **options):
    """This project's network; or, `plain`, with Flax's own convolutions and batch norm."""
    import flax.linen as nn
    import jax

    from mnv2_jax.models import layers
    from mnv2_jax.models.build import build

    if not plain:
        return build(**options)

    class StockNorm(nn.BatchNorm):
        is_written_out = False

        def __call__(self, x, mask=None, activation=lambda x: x):
            return activation(super().__call__(x))

    layers.BatchNorm = StockNorm
    return build(**options, convolve=jax.lax.conv_general_dilated)


def sgd_step(model, params, stats, images, labels):
    import jax
    import jax.numpy as jnp

    def loss(params):
        out, update = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True,
            mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)})  # fmt: skip
        rows = jnp.arange(len(labels))
        return -jax.nn.log_softmax(out)[rows, labels].mean(), update["batch_stats"]

    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), stats, value


def jax_train(threads, batch, size, width, spec, classes, plain=False, dtype="float32"):
    """A step of gradient descent under jit."""
    import jax
    import jax.numpy as jnp

    model = jax_network(
        plain, width=width, spec=spec, num_classes=classes, dialect="torchvision", dtype=dtype
    )
    images = pictures(batch, size, size, 3)
    labels = jnp.arange(batch) % classes
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])

    def step(params, stats):
        return sgd_step(model, params, stats, images, labels)

    compiled = jax.jit(step, donate_argnums=(0, 1))
    state = [variables["params"], variables["batch_stats"]]

    def run():
        *state[:], value = compiled(*state)
        value.block_until_ready()

    return run


def jax_infer(threads, batch, size, form, width=1.0, dtype="float32"):
    """Logits of a batch.

    The form is `folded`, `shared` (the same, a device for each core, as `mnv2 evaluate` runs it),
    `module` (the network as it is) or `plain` (Flax's own).
    """
    import jax

    from mnv2_jax import fold, folded_apply
    from mnv2_jax.lab.devices import process as host
    from mnv2_jax.lab.devices.sharding import over_rows

    if form == "shared":
        host.split_cpu(threads)
    model = jax_network(form == "plain", width=width, dialect="torchvision", dtype=dtype)
    images = jax.device_put(pictures(batch, size, size, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    if form in ("folded", "shared"):
        apply, variables = partial(folded_apply, model), fold(model, variables)
    else:
        apply = model.apply
    options = host.prediction_options() if form in ("folded", "shared") else {}
    compiled = jax.jit(over_rows(apply) if form == "shared" else apply, compiler_options=options)
    return lambda: compiled(variables, images).block_until_ready()


def torch_network(threads, **options):
    """The network and its device; on a GPU in bfloat16, under autocast."""
    import torch

    from benchmarks.peers import mobilenet_v2

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = mobilenet_v2(**options).to(device, memory_format=torch.channels_last)
    return network, device


def torch_images(batch, size, device):
    import torch

    images = torch.from_numpy(pictures(batch, 3, size, size)).to(device)
    return images.to(memory_format=torch.channels_last)


def torch_settle(device):
    """Waits for the GPU, where there is one."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def torch_train(threads, batch, size, width, spec, classes, compiled=False):
    """A step of gradient descent in PyTorch, channels last, eager or through `torch.compile`."""
    import torch

    network, device = torch_network(threads, width=width, spec=spec, classes=classes)
    if compiled:
        network = torch.compile(network)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    images = torch_images(batch, size, device)
    labels = (torch.arange(batch) % classes).to(device)
    half = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")

    def run():
        optimizer.zero_grad(set_to_none=True)
        with half:
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        torch_settle(device)

    return run


def torch_infer(threads, batch, size, scripted=False, compiled=False):
    """Logits of a batch in PyTorch: eager, scripted and frozen (batch norm folded), or compiled."""
    import torch

    network, device = torch_network(threads)
    network, images = network.eval(), torch_images(batch, size, device)
    half = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
    if scripted:
        network = torch.jit.optimize_for_inference(torch.jit.trace(network, images))
    if compiled:
        network = torch.compile(network)

    def run():
        with torch.inference_mode(), half:
            network(images)
        torch_settle(device)

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
    feed = {session.get_inputs()[0].name: pictures(batch, 3, size, size)}
    return lambda: session.run(None, feed)


def openvino_infer(threads, batch, size):
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    network = openvino.compile_model(str(onnx_file(batch, size)), "CPU", options)
    images = pictures(batch, 3, size, size)
    return lambda: network([images])


def jax_replicas(threads, batch, size, width, spec, classes, replicas):
    """A step of gradient descent for several seeds at once under vmap."""
    import jax
    import jax.numpy as jnp

    model = jax_network(False, width=width, spec=spec, num_classes=classes, dialect="torchvision")
    images = pictures(replicas, batch, size, size, 3)
    labels = jnp.arange(batch) % classes

    def init(key):
        variables = model.init(key, images[0, :1])
        return variables["params"], variables["batch_stats"]

    def step(params, stats, images):
        return sgd_step(model, params, stats, images, labels)

    compiled = jax.jit(jax.vmap(step), donate_argnums=(0, 1))
    state = [*jax.jit(jax.vmap(init))(jax.random.split(jax.random.key(0), replicas))]

    def run():
        *state[:], value = compiled(*state, images)
        value.block_until_ready()

    return run


def litert_file(batch, size):
    import jax

    from mnv2_jax.export.litert import write_litert
    from mnv2_jax.inference.graph import trace

    path = Path(tempfile.gettempdir()) / f"mobilenet_v2_{batch}_{size}.tflite"
    if not path.exists():
        model = jax_network(False, dialect="torchvision")
        variables = jax.jit(model.init)(jax.random.key(0), pictures(1, 32, 32, 3))
        write_litert(path, trace(model, variables, (size, size), None), ("logits",))
    return path


def litert_infer(threads, batch, size):
    """The network as LiteRT runs it through XNNPACK, from the same export as `mnv2 export`."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(litert_file(batch, size)), num_threads=threads)
    (entry,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(entry["index"], (batch, size, size, 3))
    interpreter.allocate_tensors()
    (entry,) = interpreter.get_input_details()
    images = pictures(*entry["shape"])

    def run():
        interpreter.set_tensor(entry["index"], images)
        interpreter.invoke()

    return run


def on_pixels(model, size, folded, band=None):
    """(variables, pixels) -> outputs, and variables: folded as `mnv2 predict` does, or as it is."""
    import jax

    from mnv2_jax import fold, folded_apply
    from mnv2_jax.models.dialect import normalize

    apply, variables = model.apply, jax.jit(model.init)(jax.random.key(0), pictures(1, 65, 65, 3))
    if folded:
        apply = partial(folded_apply, model, band=band)
        variables = fold(model, variables, (size, size))
    return lambda v, x: apply(v, normalize(x, model.backbone.dialect)), variables


def jax_detect(threads, batch, size, stage, folded=True, band=None):
    """Boxes in a batch of images: the `whole` of it, its `network`, or from that on its `boxes`."""
    import jax

    from mnv2_jax.lab.devices import process as host
    from mnv2_jax.models.boxes import detections
    from mnv2_jax.models.ssdlite import SSDLite

    model = SSDLite()
    network, variables = on_pixels(model, size, folded, band)

    def boxes(codes, logits):
        return detections(codes, logits, model.anchors((size, size)))

    inputs = (variables, jax.device_put(pixels(batch, size, size, 3)))
    if stage == "boxes":
        run, inputs = boxes, jax.jit(network)(*inputs)
    else:
        run = {"whole": lambda v, x: boxes(*network(v, x)), "network": network}[stage]
    compiled = jax.jit(run, compiler_options=host.prediction_options())
    return lambda: jax.block_until_ready(compiled(*inputs))


def jax_segment(threads, batch, size, output_stride, folded=True, band=None):
    """The class of every pixel of a batch of images."""
    import jax

    from mnv2_jax.lab.devices import process as host
    from mnv2_jax.models.build import build_deeplab

    model = build_deeplab(output_stride=output_stride)
    network, variables = on_pixels(model, size, folded, band)
    images = jax.device_put(pixels(batch, size, size, 3))
    options = host.prediction_options()
    compiled = jax.jit(lambda v, x: network(v, x).argmax(axis=-1), compiler_options=options)
    return lambda: compiled(variables, images).block_until_ready()


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def torch_published(threads, batch, size, build, scripted=False, **options):
    """A network of `benchmarks.peers` in PyTorch, eager, or scripted and frozen."""
    import torch

    from benchmarks import peers

    torch.set_num_threads(threads)
    network = getattr(peers, build)(**options).eval()
    network = network.to(memory_format=torch.channels_last)
    images = torch_images(batch, size, "cpu")
    if scripted:
        traced = torch.jit.trace(network, images, strict=False)
        network = torch.jit.optimize_for_inference(traced)

    def run():
        with torch.inference_mode():
            network(images)

    return run


def torchvision_detect(threads, batch, size):
    """torchvision's SSDLite on MobileNetV3, with what comes before and after the network."""
    import torch

    from benchmarks import peers

    torch.set_num_threads(threads)
    detector = peers.ssdlite_v3().eval().to(memory_format=torch.channels_last)
    if not importlib.import_module("torchvision.extension")._has_ops():
        raise ImportError("torchvision's compiled operators do not fit this PyTorch")
    images = list(torch_images(batch, size, "cpu"))

    def run():
        with torch.inference_mode():
            detector(images)

    return run
