"""A finished sweep that nobody trained, with every kind of file that a run leaves."""

import json
from pathlib import Path

import jax

from mnv2_jax.files import write_file, write_json
from mnv2_jax.lab.train.checkpoint import Checkpoints, Progress
from mnv2_jax.lab.train.lock import Lock
from mnv2_jax.lab.train.log import RunLog
from mnv2_jax.lab.train.record import METRICS, hash_file, sealed, write_model
from mnv2_jax.lab.train.sweep import claim
from tests.lab.train.setting import tiny
from tests.lab.train.test_checkpoint import state_at

STEPS = (4, 6)
DESCRIBED = {"task": "classify", "model": {"width": 1.0, "dialect": "slim"}, "classes": ["a", "b"],
             "resolution": 8, "eval": {}}  # fmt: skip


def configuration(**changes):
    return tiny(steps=6, **changes)


def fabricate(workdir: Path) -> Path:
    """Two variants with two seeds each; every seed has checkpoints of two steps and a result."""
    config = configuration()
    with Lock(workdir) as lock:
        run = claim(workdir, config, lock)
    for variant in config.sweep.variants:
        for seed in config.sweep.seeds:
            whose = run._replace(variant=variant, seeds=(seed,))
            write_seed(workdir / variant, whose, seed + 10 * len(variant))
    write_file(workdir / "report.md", "# A report\n")
    write_file(workdir / "curves.png", b"\x89PNG")
    runs = {v: [{"seed": seed} for seed in config.sweep.seeds] for v in config.sweep.variants}
    files = {name: hash_file(workdir / name) for name in ("report.md", "curves.png")}
    write_json(workdir / "results.json", sealed({"runs": runs, "files": files}))
    return workdir


def write_seed(folder, whose, draw):
    """What one seed leaves; `draw` makes its numbers."""
    (seed,) = whose.seeds
    place = folder / f"seed_{seed}"
    log = RunLog(place)
    checkpoints = Checkpoints(folder / f"checkpoints_{seed}", 2, whose, DESCRIBED)
    for step in (2, *STEPS):
        log.write(step, "train", {"loss": draw / step})
        if step in STEPS:
            log.write(step, "eval", {"accuracy": 1 / (step + draw)})
            state = state_at(draw).replace(step=jax.numpy.int32(step))
            progress = Progress(step / 3, rows=json.loads(json.dumps([log.rows])))
            checkpoints.save(state, progress, 1 / step)
    checkpoints.close()
    log.close()
    result = {
        "seed": seed,
        "steps": step,
        "seconds": 1.0,
        "metrics": {"eval/accuracy": 1 / (step + draw)},
        "skipped": 0,
    }
    more = (place / METRICS, *log.events())
    write_model(place, state.variables, DESCRIBED, result, whose, more)
