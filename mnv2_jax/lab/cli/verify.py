"""`mnv2 verify`: whether what a training left on disk is sound."""

import argparse
import json
from pathlib import Path

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.cli.verb import Verb, json_argument


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", help="folder of a training, such as runs/ablate_linear")
    json_argument(parser)


def _verify(arguments: argparse.Namespace) -> None:
    from mnv2_jax.lab.verify import verify

    damaged = found = 0
    for finding in verify(Path(arguments.workdir).expanduser().absolute()):
        found += 1
        damaged += bool(finding.problem)
        if arguments.json:
            print(json.dumps(finding._asdict()), flush=True)
        else:
            verdict = finding.problem or "sound"
            print(f"{finding.what:<24} {finding.path:<48} {verdict}", flush=True)
    if damaged:
        raise UsageError(
            f"{damaged} of {found} parts of {arguments.workdir} are damaged, see above. A training "
            "goes on from its newest sound checkpoint by itself; a finished one is trained anew "
            "where its seed_N folder and checkpoints are removed."
        )


VERIFY = Verb(
    "Read every checkpoint, log, model and result of a training, and say what is sound.",
    _verify_arguments,
    _verify,
    ("mnv2 verify runs/ablate_linear",),
)
