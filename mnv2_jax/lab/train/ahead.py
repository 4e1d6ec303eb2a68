"""A training's programs compiled for devices that need not be here, and what they would cost.

XLA's compilers for TPUs and for NVIDIA's GPUs run without the device. What they say of a program is
exact where it is a count: memory, collectives, what kernels read and write. Times are estimates:
bounds from the published peaks below, and on TPUs the compiler's own sum of cycles.
"""

import importlib.util
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies

from mnv2_jax.accounting import account
from mnv2_jax.errors import UsageError, first_line, unknown
from mnv2_jax.lab.data.source import ArraySource, LazySource, Source
from mnv2_jax.lab.tasks import TASKS
from mnv2_jax.lab.train.run import make_run
from mnv2_jax.lab.train.sweep import seed_groups
from mnv2_jax.ops.platform import compiled_for


class Chip(NamedTuple):
    """What one device of JAX has, by its maker: of TPU v2 and v3, one of a chip's two cores."""

    memory: float  # bytes
    bandwidth: float  # of memory, bytes a second
    peak: float  # bfloat16 operations a second
    links: float  # bytes a second to its neighbours of a ring, one way
    clock: float = 0.0  # Hz, of the cycles that its compiler counts


GIB = 2.0**30
# Cloud TPU's "system architecture" pages; clocks follow from the peak and the matrix units (their
# number × 128² × 2 operations a cycle). GPUs: NVIDIA's data sheets (dense, no sparsity).
CHIPS = {
    "v2": Chip(8 * GIB, 3.5e11, 2.25e13, 1.2e11, 7.0e8),
    "v3": Chip(16 * GIB, 4.5e11, 6.15e13, 1.6e11, 9.4e8),
    "v4": Chip(32 * GIB, 1.228e12, 2.75e14, 9.0e10, 1.05e9),
    "v5e": Chip(16 * GIB, 8.19e11, 1.97e14, 9.0e10, 1.5e9),
    "v5p": Chip(95 * GIB, 2.765e12, 4.59e14, 1.8e11, 1.75e9),
    "v6e": Chip(32 * GIB, 1.64e12, 9.18e14, 1.8e11, 1.75e9),
    "a100": Chip(80e9, 2.039e12, 3.12e14, 3.0e11),
    "h100": Chip(80e9, 3.352e12, 9.89e14, 4.5e11),
}  # fmt: skip
# Slices by the names that they are rented under, as libtpu calls them.
SLICES = {
    "v2-8": "v2:2x2", "v3-8": "v3:2x2", "v4-8": "v4:2x2x1", "v5e-1": "v5e:1x1",
    "v5e-4": "v5e:2x2", "v5e-8": "v5e:2x4", "v5e-256": "v5e:16x16", "v5p-8": "v5p:2x2x1",
    "v6e-1": "v6e:1x1", "v6e-8": "v6e:2x4",
}  # fmt: skip
# What XLA asks of a GPU: (name, capability, multiprocessors, L2 cache, GHz, shared memory a
# multiprocessor and a block, single-precision units a multiprocessor).
GPUS = {
    "a100": ("NVIDIA A100-SXM4-80GB", (8, 0), 108, 41_943_040, 1.41, 167_936, 166_912, 64),
    "h100": ("NVIDIA H100 80GB HBM3", (9, 0), 132, 52_428_800, 1.98, 233_472, 232_448, 128),
}  # fmt: skip
# Without these, libtpu asks Google's servers where it is, and lets in one process at a time.
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-1",
}  # fmt: skip
# Classes, images to train on, images to evaluate on of sets that are too large to be at hand.
KNOWN = {
    "imagenet2012": (1000, 1_281_167, 50_000), "coco": (80, 118_287, 5_000),
    "voc_segmentation": (21, 10_582, 1_449), "cityscapes": (19, 2_975, 500),
    "cifar10": (10, 50_000, 10_000), "cifar100": (100, 50_000, 10_000),
    "fashion_mnist": (10, 60_000, 10_000), "mnist": (10, 60_000, 10_000),
    "tfds:imagenette/160px-v2": (10, 12_894, 500),
}  # fmt: skip
# Those that live on the device: the side of an image, and its channels.
SMALL = {"cifar10": (32, 3), "cifar100": (32, 3), "fashion_mnist": (28, 1), "mnist": (28, 1)}


class Place(NamedTuple):
    """Devices that a program is compiled for."""

    name: str
    platform: str  # "tpu", "cuda" or "cpu"
    chip: Chip
    devices: list[Any]  # JAX's


class Cost(NamedTuple):
    """What one program costs on each device."""

    memory: dict[str, int]  # bytes by kind
    counted: "Count"
    float32: int  # convolutions and products of float32 numbers
    bounds: dict[str, float]  # seconds, by what bounds them

    @property
    def seconds(self) -> float:
        """What it takes at least; on TPUs what the compiler expects."""
        return self.bounds.get("cycles", max(self.bounds.values()))


class Forecast(NamedTuple):
    """What a training would cost, all estimated by the compiler."""

    devices: int
    seeds: int  # that are trained at once
    rows: dict[str, int]  # images of a program, of each seed
    steps: int
    evaluations: float  # batches of the held-out images, over the whole training
    costs: dict[str, Cost]  # of a step, and of a batch of the evaluation
    largest_batch: int  # that would fit, if temporaries grow with it and nothing else does

    @property
    def hours(self) -> float:
        """Of steps and evaluations, where devices wait for nothing."""
        step, evaluation = (cost.seconds for cost in self.costs.values())
        return (self.steps * step + self.evaluations * evaluation) / 3600


def place_of(name: str) -> Place:
    """Returns what a name describes.

    Names are those of `SLICES`, a topology as in "v5e:4x4", or GPUs of one host as in "8xh100".
    `UsageError` for another name, or without the compiler.
    """
    gpus = re.fullmatch(r"(?:(\d+)x)?(\w+)", name)
    if gpus and gpus[2] in GPUS and gpus[1] != "0":
        _need("jax_plugins.xla_cuda12", "GPUs", "jax-cuda12-plugin, jax-cuda12-pjrt", "plan-gpu")
        target = {"target_config": _target(gpus[2]), "topology": f"1x1x{gpus[1] or 1}"}
        devices = _topology(name, gpus[2], platform="cuda", **target)
        return Place(name, "cuda", CHIPS[gpus[2]], devices)
    topology = SLICES.get(name, name)
    kind = topology.partition(":")[0]
    if kind not in CHIPS or ":" not in topology:
        choices = [*SLICES, *GPUS, *(f"8x{gpu}" for gpu in GPUS), "v5e:4x4 and such"]
        raise unknown("device", name, choices)
    _need("libtpu", "TPUs", "libtpu", "plan-tpu")
    options: dict[str, Any] = {"platform": "tpu"}
    if topology.endswith(":1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)
    if kind == "v4":  # as JAX has it there: both cores of a chip are one device
        options["chip_config_name"] = "megacore"
    return Place(name, "tpu", CHIPS[kind], _topology(name, topology, **options))


def _need(module: str, what: str, packages: str, extra: str) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise UsageError(
            f"to compile for {what} takes {packages}: pip install 'mnv2_jax[{extra}]', which needs "
            "no such device."
        )


def _topology(name: str, *given: Any, **options: Any) -> list[Any]:
    for variable, value in ALONE.items():
        os.environ.setdefault(variable, value)
    jax.devices()  # CUDA's topologies are only found once there are backends
    try:
        return list(topologies.get_topology_desc(*given, **options).devices)
    except Exception as error:  # of many kinds, by what the plugin is made of
        raise UsageError(
            f"the compiler refuses {name!r}: {first_line(error)}. Choose from {', '.join(SLICES)}."
        ) from error


def _target(gpu: str) -> str:
    """Returns XLA's description of a GPU as a protocol buffer's text."""
    name, (major, minor), cores, cache, clock, shared, of_block, units = GPUS[gpu]
    device = {
        "threads_per_block_limit": 1024, "threads_per_warp": 32, "shared_memory_per_block": 49_152,
        "shared_memory_per_core": shared, "threads_per_core_limit": 2048, "core_count": cores,
        "fpus_per_core": units, "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535, "memory_bandwidth": int(CHIPS[gpu].bandwidth),
        "l2_cache_size": cache, "clock_rate_ghz": clock, "registers_per_core_limit": 65_536,
        "device_memory_size": int(CHIPS[gpu].memory), "shared_memory_per_block_optin": of_block,
        "registers_per_block_limit": 65_536,
    }  # fmt: skip
    fields = " ".join(f"{key}: {value}" for key, value in device.items())
    capability = f"cuda_compute_capability {{ major: {major} minor: {minor} }}"
    return (
        f'gpu_device_info {{ {fields} {capability} }} platform_name: "CUDA" '
        f'dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{name}"'
    )


def unseen(config: Any, classes: int | None, images: Sequence[int]) -> dict[Any, Source]:
    """Returns stand-ins for data that is not at hand, of `classes` and `images` (train, eval).

    What is not given is known for the sets of `KNOWN`; a `UsageError` asks for it otherwise.
    """
    data, spec = config.data, TASKS[config.task]
    known = KNOWN.get(data.name)
    if classes is None or not images:
        if known is None:
            raise UsageError(
                f"how many classes and images {data.name} has is not known without it: give "
                "--classes N and --images TRAIN,EVAL, or its root by --config.data.root."
            )
        classes, images = classes or known[0], images or known[1:]
    names = tuple(f"class {i}" for i in range(classes))
    record = {"image": np.zeros((32, 32, 3), np.uint8), **spec.unlabeled(32, 32)}

    def source(n: int) -> Source:
        if data.name in SMALL:
            side, channels = SMALL[data.name]
            black = np.zeros((n, side, side, channels), np.uint8)
            return ArraySource(black, np.zeros(n, np.int32), names)
        return LazySource(n, lambda i: record, names, counts=[1] * classes)

    parts = zip((data.train_split, data.eval_split), images, strict=True)
    return {(data.name, split, data.root): source(n) for split, n in parts}


def forecast(config: Any, place: Place, sources: dict[Any, Source] | None = None) -> Forecast:
    """Compiles a variant's step and evaluation for the devices of a place, and counts.

    `sources` stand for data that is not here, see `unseen`. `UsageError` for what training refuses
    too, and where a program does not fit, with how much it takes and what would fit.
    """
    seeds = next(seed_groups(config))[0]
    with compiled_for(place.platform):
        used = place.devices[: config.parallel.devices or None]
        run = make_run(config, len(seeds), sources, used)
        lowered = run.lowered(seeds)
        size, channels = config.data.resolution, run.description["in_channels"]
        madds = account(run.model, (1, size, size, channels)).madds * len(seeds)
    state, n = _kinds(lowered.state), run.plan.mesh.size
    # A training step computes the network once and two gradients of each product.
    work = {"step": 6 * madds * config.batch_size, "evaluation": 2 * madds * config.eval_batch_size}
    costs = {
        name: _cost(lowered.programs[name], name, place, n, state, flops / n)
        for name, flops in work.items()
    }
    memory = costs["step"].memory
    free = place.chip.memory - sum(memory.values()) + memory["temporaries"]
    fits = config.batch_size * free / max(1, memory["temporaries"])
    batches = math.ceil(run.images["eval_images"] / config.eval_batch_size)
    evaluations = 1 + run.steps / (config.eval_every_epochs * run.epoch_steps)
    rows = {"step": config.batch_size, "evaluation": config.eval_batch_size}
    return Forecast(n, len(seeds), rows, run.steps, batches * evaluations, costs, int(fits))


def _kinds(state: Any) -> dict[str, int]:
    """Bytes of a training state on each device, by kind."""
    ema = {"averages": state.ema} if state.ema else {}
    parts = {"parameters": state.params, "statistics": state.batch_stats}
    parts |= {"optimizer": state.opt_state, **ema}
    return {kind: sum(map(_bytes_here, jax.tree.leaves(part))) for kind, part in parts.items()}


def _bytes_here(leaf: Any) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
    return math.prod(shape) * leaf.dtype.itemsize


def _cost(
    lowered: Any, what: str, place: Place, devices: int, state: Mapping[str, int], flops: float
) -> Cost:
    chip = place.chip
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"Used ([\d.]+[KMGT]) of ([\d.]+[KMGT])", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not used:
            reason = first_line(error)
            raise UsageError(f"the {what} does not compile for {place.name}: {reason}.") from None
        raise UsageError(
            f"the {what} does not fit {place.name}: it takes {used[1]}iB of {used[2]}iB. Make the "
            "batch smaller, set parallel.accumulate to 2 or more, or model.dtype to bfloat16."
        ) from None
    memory, counted = program.memory_analysis(), count(program.as_text())
    arguments = memory.argument_size_in_bytes - sum(state.values())
    kinds = {**state, "batch and data": max(0, arguments), "temporaries": memory.temp_size_in_bytes}
    kinds["outputs"] = max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
    kinds["program"] = memory.generated_code_size_in_bytes
    bounds = {"memory": counted.traffic / chip.bandwidth, "arithmetic": flops / chip.peak}
    if sent := sum(size for _, size in counted.collectives.values()):
        bounds["links"] = sent * 2 * (devices - 1) / devices / chip.links  # around a ring
    if counted.cycles and chip.clock:
        bounds["cycles"] = counted.cycles / chip.clock
    wide = re.findall(WIDE, lowered.as_text())
    return Cost(kinds, counted, len(wide), bounds)


# Convolutions and products of float32 numbers, in StableHLO.
WIDE = r"stablehlo\.(?:convolution|dot_general)\b[^\n]*: \(tensor<(?:\d+x)*f32>"
SIZES = {"pred": 1, "bf16": 2} | {f"{k}{n}": n // 8 for k in "sufc" for n in (8, 16, 32, 64, 128)}
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "while", "call", "conditional", "opt-barrier",
}  # fmt: skip
COLLECTIVES = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?$"
)
# name = shape operation(operands), ...; of shapes the part in chip memory, S(1), is no traffic.
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\(([^)]*)\)(.*)$")
SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](?:\{([^}]*)\})?")


class Count(NamedTuple):
    """What a compiled program says of itself, loops as often as they run."""

    traffic: int  # bytes that kernels read and write in the device's memory
    kernels: int
    cycles: int  # that the compiler for TPUs expects
    collectives: dict[str, tuple[int, int]]  # kind -> (number, bytes)


def count(text: str) -> Count:
    """Counts what a scheduled HLO module does on one device, each kernel reading all it is given.

    >>> text = '''
    ... ENTRY %main (x: f32[8]) -> f32[8] {
    ...   %x = f32[8]{0} parameter(0)
    ...   %y = f32[8]{0} fusion(%x), kind=kLoop, calls=%f
    ...   ROOT %z = f32[8]{0} all-reduce(%y), to_apply=%add
    ... }'''
    >>> count(text)
    Count(traffic=128, kernels=2, cycles=0, collectives={'all-reduce': (1, 32)})
    """
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            lines = bodies.setdefault("ENTRY" if header[1] else header[2], [])
        else:
            lines.append(line)
    return _count("ENTRY", bodies)


def _count(name: str, bodies: Mapping[str, list[str]]) -> Count:
    traffic = kernels = cycles = 0
    sizes: dict[str, int] = {}
    sent: Counter[str] = Counter()
    number: Counter[str] = Counter()
    for line in bodies.get(name, ()):
        if not (found := INSTRUCTION.match(line)):
            continue
        own, shape, operation, operands, rest = found.groups()
        sizes[own] = _bytes_of(shape)
        inner = re.findall(r"(?:body|to_apply|branch_computations)=\{?%?([\w.\-]+)", rest)
        if operation in ("while", "call", "conditional"):
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', rest)
            times = int(trips[1]) if trips else 1
            for part in (_count(body, bodies) for body in inner):
                traffic += times * part.traffic
                kernels += times * part.kernels
                cycles += times * part.cycles
                for kind, (n, size) in part.collectives.items():
                    number[kind] += times * n
                    sent[kind] += times * size
        if operation in FREE or operation.endswith("-done"):
            continue
        kernels += 1
        reads = (sizes.get(operand, 0) for operand in re.findall(r"%([\w.\-]+)", operands))
        # What starts a copy names source and target in its own shape.
        traffic += sizes[own] + (0 if operation.endswith("-start") else sum(reads))
        if estimate := re.search(r'"estimated_cycles":"(\d+)"', rest):
            cycles += int(estimate[1])
        if collective := COLLECTIVES.match(operation):
            number[collective[1]] += 1
            sent[collective[1]] += _bytes_of(shape, everywhere=True)
    return Count(traffic, kernels, cycles, {kind: (number[kind], sent[kind]) for kind in number})


def _bytes_of(shape: str, everywhere: bool = False) -> int:
    return sum(
        SIZES.get(kind, 0) * math.prod(int(n) for n in sides.split(",") if n)
        for kind, sides, layout in SHAPE.findall(shape)
        if everywhere or "S(1)" not in layout
    )
