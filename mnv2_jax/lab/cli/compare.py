"""`mnv2 compare`: whether one finished run is better than another."""

import argparse
import math
from typing import TYPE_CHECKING

from mnv2_jax.lab.cli.verb import Verb, json_argument

if TYPE_CHECKING:
    from mnv2_jax.lab.train.compare import Comparison

MOST = 6  # settings that a note lists


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    what = "folder of a finished training, or its results.json; of several variants, which"
    for name in ("a", "b"):
        parser.add_argument(name, metavar="RUN[:VARIANT]", help=what)
    what = "differences below it count as none, as a share of 1 (0.01, which is one point)"
    parser.add_argument("--delta", type=float, default=0.01, help=what)
    json_argument(parser)


def _compare(arguments: argparse.Namespace) -> None:
    from mnv2_jax.files import json_text
    from mnv2_jax.lab.train.compare import compare, in_words, read_side
    from mnv2_jax.lab.train.report import points, spread

    sides = [read_side(given) for given in (arguments.a, arguments.b)]
    found = compare(sides[0], sides[1], arguments.delta)
    scores = [[side.scores[found.metric][seed] for seed in found.seeds] for side in sides]
    decision, width = found.decision, max(len(side.name) for side in sides)
    if arguments.json:
        content = {
            "what": found.what, "metric": found.metric, "seeds": found.seeds, "scores": scores,
            "delta": arguments.delta, **decision._asdict(),
            "difference": decision.difference._asdict(), "left_out": found.left_out,
            "looks": found.looks, "settings": found.settings, "versions": found.versions,
            "over_images": found.over_images and found.over_images._asdict(),
        }  # fmt: skip
        print(json_text(content))
        return
    print(f"{found.what}; {len(found.seeds)} seeds of both: {', '.join(map(str, found.seeds))}\n")
    for letter, side, own in zip("AB", sides, scores, strict=True):
        print(f"{letter:<6} {side.name:<{width}} {spread(own):>12} %")
    print(f"A − B  {points(decision.difference)}, n = {decision.n}, p = {decision.p:.2g}")
    if found.over_images and math.isfinite(found.over_images.low):
        print(f"       {points(found.over_images)} over seeds and test images")
    print()
    print(f"A above B: {decision.outcome}. {in_words(decision, arguments.delta)}")
    for note in _notes(found):
        print(f"note: {note}")


def _notes(found: "Comparison") -> list[str]:
    """What the two differ in, a line each."""
    pairs = [f"{key} ({a!r} | {b!r})" for key, (a, b) in found.settings.items()]
    more = f", and {len(pairs) - MOST} more, see --json" * (len(pairs) > MOST)
    doubt = ": any of them may be the reason" * (len(pairs) > 1)
    notes = [f"they differ in {', '.join(pairs[:MOST]) or 'no setting'}{more}{doubt}"]
    versions = (f"{name} ({a} | {b})" for name, (a, b) in found.versions.items())
    notes += [f"made with other versions: {', '.join(versions)}"] * bool(found.versions)
    looks = f"looks after {', '.join(map(str, found.looks))} seeds share the 5 % of error"
    notes += [looks] * bool(found.looks)
    alone = zip("AB", found.left_out, strict=True)
    left = [f"{', '.join(map(str, seeds))} of {letter}" for letter, seeds in alone if seeds]
    notes += [f"left out, for the other has no such seed: {'; '.join(left)}"] * bool(left)
    return notes


COMPARE = Verb(
    "Test whether one finished run is better than another, seed by seed.",
    _compare_arguments, _compare,
    (
        "mnv2 compare runs/ablate_linear:linear runs/ablate_linear:relu6",
        "mnv2 compare runs/mine runs/tradeoff:width_100-size_16 --delta 0.005",
    ),
)  # fmt: skip
