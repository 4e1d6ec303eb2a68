"""`mnv2 plan`: what a training would take on devices that are not here."""

import argparse
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.cli.verb import Verb, json_argument

if TYPE_CHECKING:
    from mnv2_jax.lab.train.ahead import Forecast, Place


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    add, file = parser.add_argument, "FILE[:PRESET]"
    what = "an experiment; --config.KEY=VALUE changes one of its keys"
    add("--config", metavar=file, required=True, help=what)
    what = "v5e-1 (Colab), v5e-8, v2-8, v4-8, v5p-8, v6e-8, v5e:16x16, h100, 8xh100, …"
    add("--on", metavar="DEVICES", required=True, help=what)
    add("--variant", help="of the experiment (its reference)")
    add("--classes", type=int, help="of data that is neither here nor well known")
    add("--images", metavar="TRAIN,EVAL", help="likewise")
    add("--price", type=float, metavar="P", help="of one device for an hour, for the cost")
    json_argument(parser)


def _plan(arguments: argparse.Namespace) -> None:
    import jax

    from mnv2_jax.lab.data.catalog import CATALOG
    from mnv2_jax.lab.train.ahead import forecast, place_of, unseen
    from mnv2_jax.lab.train.config import load_config
    from mnv2_jax.lab.train.sweep import check_variants

    jax.config.update("jax_platforms", "cpu")  # nothing runs on what may be here
    config = load_config(arguments.config, arguments.overrides)
    # Of the files that an experiment asks for, only a teacher changes what is computed.
    config.needs = tuple(key for key in config.needs if key.startswith("teacher."))
    variants = check_variants(config)
    name = arguments.variant or config.sweep.reference
    if name not in variants:
        raise UsageError(f"--variant is {name!r}: choose one of {', '.join(variants)}.")
    variant = variants[name]
    images = _numbers(arguments.images)
    place = place_of(arguments.on)
    data = CATALOG.get(variant.data.name)
    here = variant.data.root is not None or (data is not None and data.root is None)
    sources = unseen(variant, arguments.classes, images) if images or not here else None
    found = forecast(variant, place, sources)
    price = arguments.price and arguments.price * found.hours * found.devices
    if arguments.json:
        print(json.dumps(as_json(found, place) | ({"price": price} if price else {})))
        return
    print(f"{config.name}, {name}, on {place.name}: estimated by the compiler, not measured")
    for title, program in (("training step", "step"), ("batch of evaluation", "evaluation")):
        seeds = f" for each of {found.seeds} seeds" * (found.seeds > 1)
        print(f"\n{title}: {found.rows[program]:,} images{seeds}, {found.devices:,} device(s)")
        for label, value in _rows(found, program):
            print(f"  {label:<20} {value}")
    used, whole = sum(found.costs["step"].memory.values()), place.chip.memory
    fits = "fits" if used <= whole else "does not fit"
    print(f"\n{'memory':<22} {fits}: {used / 1e9:,.2f} of {whole / 1e9:,.1f} GB of a device")
    print(f"{'largest batch':<22} about {found.largest_batch:,} images")
    units = (("hours", 1), ("minutes", 60), ("seconds", 3600))
    unit, times = next((u for u in units if found.hours * u[1] >= 2), units[-1])
    took = f"{found.hours * times:,.2g} {unit}" if unit != "hours" else f"{found.hours:,.0f} hours"
    print(f"{'whole training':<22} {took} for {found.steps:,} steps and the evaluations")
    if price:
        print(f"{'cost':<22} {price:,.2f}, at {arguments.price:g} a device and hour")


def _numbers(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    if not re.fullmatch(r"[1-9]\d*,[1-9]\d*", text):
        raise UsageError(f"--images is {text!r}: give two numbers, as in 9000,1000.")
    train, held_out = text.split(",")
    return int(train), int(held_out)


def as_json(found: "Forecast", place: "Place") -> dict[str, Any]:
    """Returns a forecast in plain values: seconds, bytes and counts of each device."""
    programs = {
        name: {
            "images": found.rows[name], "memory": cost.memory, **cost.counted._asdict(),
            "float32": cost.float32, "bounds": cost.bounds, "seconds": cost.seconds,
        }
        for name, cost in found.costs.items()
    }  # fmt: skip
    rest = {"devices": found.devices, "seeds": found.seeds, "steps": found.steps}
    rest |= {"hours": found.hours, "largest_batch": found.largest_batch}
    return {"on": place.name, **rest, "programs": programs}


def _rows(found: "Forecast", program: str) -> Iterator[tuple[str, str]]:
    cost, images = found.costs[program], found.rows[program] * found.seeds
    counted, here = cost.counted, images / found.devices
    kinds = (f"{kind} {size / 1e6:,.1f}" for kind, size in cost.memory.items() if size >= 5e4)
    yield "memory, MB", ", ".join(kinds)
    traffic = f"{counted.traffic / here / 1e6:,.2f} MB an image in {counted.kernels:,} kernels"
    yield "memory traffic", traffic
    for kind, (number, size) in counted.collectives.items():
        yield kind, f"{number:,}, {size / 1e6:,.1f} MB"
    yield "float32 products", f"{cost.float32:,}"
    cycles = f" ({counted.cycles:,})" * bool(counted.cycles)
    bounds = (f"{kind} {seconds * 1e3:,.2f}" for kind, seconds in cost.bounds.items())
    yield "bounds, ms", ", ".join(bounds) + cycles
    yield "images a second", f"{images / cost.seconds:,.0f} at most"


PLAN = Verb(
    "Compile a training for a TPU or GPU that is not here, and say what it would take.",
    _plan_arguments, _plan,
    (
        "mnv2 plan --config experiments/ablate_linear.py --on v5e-1",
        "mnv2 plan --config experiments/imagenet.py --on 8xh100 --price 2.5",
    ),
)  # fmt: skip
