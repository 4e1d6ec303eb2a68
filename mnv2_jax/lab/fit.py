"""From a folder of pictures to a trained classifier: what is there, what to choose, and why."""

import hashlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mnv2_jax.errors import UsageError, one_line, shown
from mnv2_jax.files import read_json, user_path, write_json
from mnv2_jax.lab.data import BadRecord, open_source
from mnv2_jax.lab.data.image import decode
from mnv2_jax.lab.data.readers.files import read_record
from mnv2_jax.lab.data.source import summary
from mnv2_jax.lab.devices.process import cores
from mnv2_jax.lab.evaluation_report import write_report
from mnv2_jax.lab.model_folder import (
    DESCRIPTION,
    describe_weights,
    load_model,
    read_description,
    save_model,
)
from mnv2_jax.lab.tasks.task import TrainedModel
from mnv2_jax.lab.train.check import duration, seconds_of
from mnv2_jax.lab.train.config import of_start, override
from mnv2_jax.lab.train.defaults import base, per
from mnv2_jax.lab.train.finish import finish
from mnv2_jax.lab.train.report import MAX_OF_START
from mnv2_jax.lab.train.run import make_run
from mnv2_jax.lab.train.sweep import check_variants, run_sweep
from mnv2_jax.weights.published import at_hand, from_pretrained

SPLITS = ("train", "val")
CHOICES, REPORT, SOUND = "fit.json", "report.html", "images"
# How whole JPEG and PNG files begin and end; others are decoded to be sure.
BEGIN, ENDS = (b"\xff\xd8\xff", b"\x89PNG"), (b"\xff\xd9", b"IEND")
MEASURED = 500  # pictures, for the median of their sizes
SPARE = 0.7  # the share of the time for steps and to compile them; the rest is evaluating
EPOCHS = {True: 20, False: 100}  # at most, from a model and from nothing
LISTED = 5
UNEVEN = 2  # times the smallest class's pictures that the largest has, to weight the classes
SCRATCH = "scratch"  # in place of a model to start from
SMALL = 64  # pixels, of pictures for which published networks have too many strides
Choice = tuple[str, Any, str]  # key, value, reason


class Pictures(NamedTuple):
    """What is in a folder of pictures."""

    sources: dict[str, Any]  # by split
    side: int  # the median of the shorter sides, in pixels
    damaged: dict[Path, str]  # files that cannot be read, and why
    twice: list[tuple[Path, Path]]  # of train and val, with the same bytes


def look(root: Path) -> Pictures:
    """Reads every file of a folder of pictures, as far as it takes to find damage and copies.

    Raises:
      UsageError: there is nothing to train on: no images, two of them, or one class.
    """
    sources: dict[str, Any] = {split: open_source("folder", split, str(root)) for split in SPLITS}
    paths = {
        split: [Path(source.files[0]) / name for name in source.files[1]]
        for split, source in sources.items()
    }
    every = [*paths["train"], *paths["val"]]
    measured = [i % (len(every) // MEASURED + 1) == 0 for i in range(len(every))]
    with ThreadPoolExecutor(cores()) as pool:
        seen = dict(zip(every, pool.map(_seen, every, measured), strict=True))
    damaged = {path: found for path, found in seen.items() if isinstance(found, str)}
    sides, first, twice = [], {}, []
    for split in SPLITS:
        for path in paths[split]:
            if not isinstance(found := seen[path], str):
                sides += found[1]
                if first.setdefault(found[0], (split, path))[0] != split:
                    twice.append((first[found[0]][1], path))
    classes, sound = sources["train"].classes, [len(set(p) - set(damaged)) for p in paths.values()]
    if len(classes) < 2 or min(sound) < 1 or sum(sound) < 3:
        there = f"{sound[0]} images to train on and {sound[1]} to evaluate on, {len(classes)} class"
        raise UsageError(f"{root} has {there}: two classes with two images each are needed.")
    return Pictures(sources, int(statistics.median(sides or [224])), damaged, twice)


def _seen(path: Path, measured: bool) -> tuple[bytes, list[int]] | str:
    """Returns the hash of an image, and its shorter side if `measured`; or what is wrong."""
    from PIL import Image

    try:
        data = read_record(path)
        if not (data.startswith(BEGIN) and any(end in data[-32:] for end in ENDS)):
            decode(data, str(path))
        sides = [min(Image.open(io.BytesIO(data)).size)] if measured else []
        return hashlib.sha256(data).digest(), sides
    except BadRecord as bad:
        return bad.reason
    except Exception:  # Pillow raises what it meets
        return "it is no image that can be read"


def choose(found: Pictures, start: Path | None) -> list[Choice]:
    """Returns the keys that suit the pictures, the machine and the model to start from."""
    n, slow, side = len(found.sources["train"]), jax.devices()[0].platform == "cpu", found.side
    size = f"the shorter side of the pictures is {side} pixels in the median"
    batch = max(2, min(32 if n < 2000 else 64 if slow else 256, n // 4))
    batch += -batch % jax.device_count()
    choices: list[Choice] = [("batch_size", batch, f"for {n:,} pictures to train on")]
    counts = np.array(found.sources["train"].counts)
    if (times := counts.max() / counts.min()) > UNEVEN:
        weights = counts**-0.5 * counts.sum() / (counts**0.5).sum()  # 1 in the mean over pictures
        reason = f"the largest class is {times:.1f} times the smallest: its root evens the loss out"
        choices.append(("loss.class_weights", tuple(weights.round(3).tolist()), reason))
    if start is not None:
        own = read_description(start / DESCRIPTION)[0]
        reason = "that of the model to start from"
        choices += [(f"model.{key}", value, reason) for key, value in of_start(own["model"])]
        place = ("init.model", str(start), "what to start from")
        return [*choices, place, ("data.resolution", own["resolution"], "as the model has it")]
    steps = ((16, "tiny_8", 8), (SMALL, "small_32", 32), (160 if not slow else 1e9, "small_96", 96))
    spec, resolution = next((row[1:] for row in steps if side < row[0]), ("imagenet", 224))
    reason = size + ", and there is no GPU or TPU" * (slow and side >= 160)
    choices += [("model.spec", spec, reason), ("data.resolution", resolution, reason)]
    choices.append(("model.width", 0.5 if slow else 1.0, "CPUs are slow" if slow else "Table 2"))
    rate = 0.05 * batch / 32
    reason = "from nothing in a short time, by batch size"
    return [*choices, ("optimizer.learning_rate", rate, reason)]


def plan(config: Any, limit: float, epochs: bool) -> list[Choice]:
    """Times steps of a training, and returns how many of them fit into so many seconds.

    With `epochs`, or steps, in the configuration it has as many.
    """
    run = make_run(config.copy_and_resolve_references(), 1)
    keys, began = run.keys((0,)), time.monotonic()
    state, rows, compiling = run.fresh(keys), run.rows((0,), 0), 0.0
    resident = jax.device_put(run.train.resident(), run.plan.everywhere)
    for number in range(4):
        state, metrics = run.step(state, resident, next(rows), keys)
        jax.block_until_ready(metrics)
        if not number:  # which compiles
            compiling, began = time.monotonic() - began, time.monotonic()
    each = (time.monotonic() - began) / 3
    left = max(0.3 * limit, SPARE * limit - compiling)
    most = EPOCHS[bool(config.init.model)] * run.epoch_steps
    fitting = max(10, round(min(most, left / each)))
    steps = run.steps if epochs or config.steps else fitting
    reason = f"{each:.2f} s a step: {steps * each:.0f} s, {compiling:.0f} s to compile, evaluations"
    decay = round(min(0.997, max(0.8, MAX_OF_START ** (1 / (0.3 * steps)))), 3)
    every = round(max(1.0, steps / run.epoch_steps / 10), 2)
    return [
        ("steps", steps, reason),
        ("model.bn_decay", decay, "running statistics follow so few steps"),
        ("eval_every_epochs", every, "at most ten evaluations or so, of which the best is kept"),
        ("log_every", max(1, steps // 50), "fifty points of a curve"),
        ("optimizer.warmup_epochs", round(0.05 * steps / run.epoch_steps, 2), "a twentieth"),
    ]


def fit(
    folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, time: str = "10m",
    patience: int = 0, start: str | os.PathLike[str] | None = None, overrides: Sequence[str] = (),
    dry_run: bool = False, say: Callable[[str], None] = print, quiet: bool = False,
) -> TrainedModel | None:  # fmt: skip
    """Trains a classifier on a folder of pictures; returns the best model of the training.

    Args:
      folder: `train/CLASS/` and `val/CLASS/`, or `CLASS/`, of which a fifth is held out.
      out: of the results (`runs/` and the folder's name). A training there goes on.
      time: how long it may take, such as "10m", compiling included.
      patience: evaluations without a better one that end it; 0 is off.
      start: folder of a model to start from, or "scratch" for nothing; left out, the best published
        weights that are in the cache or in the folder `MNV2_MIRROR`, if there are any.
      overrides: `KEY=VALUE` of the configuration, which go before what is chosen here.
      dry_run: tells what it would do, trains nothing and returns None.
      say: is given each line of what is found and chosen.
      quiet: no progress bar.

    Raises:
      UsageError: there is nothing to train on, or something given cannot be used.
    """
    root = user_path(folder, "folder of the pictures").absolute()
    place = user_path(out or Path("runs") / root.name, "--out").absolute()
    if (must := duration(time)) or not seconds_of(time):
        raise UsageError(f"--time is {time!r}: it must be {must or 'more than none'}.")
    found = look(root)
    for split, source in found.sources.items():
        say(f"{split}: {summary(source)}")
    for path, why in found.damaged.items():
        say(one_line(f"damaged, left out: {path}: {why}"))
    for one, two in found.twice[:LISTED]:
        say(one_line(f"the same picture in train and val: {one} and {two}"))
    if more := found.twice[LISTED:]:
        say(f"and {len(more)} more that are the same in train and val: the accuracy is flattered")
    chosen = {override.partition("=")[0] for override in overrides}
    given: list[Choice] = [("time", time, "--time"), ("patience", patience, "--patience")]
    images = _sound(found, place) if found.damaged and not dry_run else root
    given += [("data.root", str(images), "what is left of it" if found.damaged else "it was given")]
    if (place / CHOICES).is_file() and not dry_run:
        kept = read_json(place / CHOICES)
        choices = [tuple(row) for row in kept["choices"]]
        say(f"{place} goes on with what was chosen there")
    else:
        with tempfile.TemporaryDirectory() as spare:
            begin = None if start in (None, SCRATCH) else user_path(start, "--start").absolute()
            if start is None and found.side >= SMALL and not any("model." in key for key in chosen):
                begin = _published(Path(spare) if dry_run else place / "start", say)
            choices = [row for row in given + choose(found, begin) if row[0] not in chosen]
            first: list[Choice] = [("optimizer.warmup_epochs", 0.0, "")]
            first = [row for row in first if row[0] not in chosen]
            first.append(("data.bad_record_budget", 1.0, ""))  # which are not left out in a dry run
            config = _config(choices + first, overrides)
            timed = plan(config, seconds_of(time), "epochs" in chosen)
            choices += [row for row in timed if row[0] not in chosen]
        if not dry_run:
            place.mkdir(parents=True, exist_ok=True)
            write_json(place / CHOICES, {"choices": choices})
    for key, value, reason in choices:
        text = value if isinstance(value, str) else shown(value)
        say(f"  {key:<24} {text:<14} {reason}")
    config = _config(choices, overrides)
    check_variants(config)
    if dry_run:
        return None
    command = ["mnv2", "fit", str(folder), "--out", str(place)]
    run_sweep(config, place, command, quiet)
    best = Path(next(finish(place, best=True))["model"])
    model = load_model(best)
    held_out = open_source("folder", config.data.eval_split, config.data.root)
    facts = {"Data": f"{root}, split val", "Model": str(best)}
    rows = [(str(key), str(value), reason) for key, value, reason in choices]
    scores = write_report(place / REPORT, model, held_out, facts, best.parent, rows).scores
    say(f"accuracy {scores['accuracy']:.1%}; report: {place / REPORT}; model: {best}")
    say(f"  mnv2 predict --model {best} IMAGE")
    say(f"  mnv2 export --model {best} --to onnx model.onnx")
    say(f"  mnv2 fit {folder} --start {best} --out {place}-2 --time 1h")
    return model


def _published(place: Path, say: Callable[[str], None]) -> Path | None:
    """Makes a model of the best published weights that can be read without a network."""
    for name in at_hand():
        try:
            loaded = from_pretrained(name, drop_head=True)
        except UsageError as error:  # such as a file of PyTorch's where that is not installed
            say(one_line(f"left out: {error}"))
            continue
        save_model(place, loaded.variables, describe_weights(loaded, []))
        say(f"starts from {name}, which is here; --start {SCRATCH} does not")
        return place
    say("no published weights are here, which need fewer pictures; one of them is fetched by:")
    say("  mnv2 import torchvision:v1-safetensors models/start")
    return None


def _config(choices: Sequence[Choice], overrides: Sequence[str]) -> Any:
    """Returns the recipe of finetune.py or, from nothing, imagenet_modern.py:plain, so changed."""
    c = base()
    c.data.name, c.data.eval_split, c.eval_batch_size = "folder", "val", 256
    c.optimizer.name, c.optimizer.schedule = "sgd", "cosine"
    if any(key == "init.model" for key, _, _ in choices):
        c.name, c.title, c.data.train.area = "finetune", "Fine-tuning", (0.35, 1.0)
        c.optimizer.learning_rate = 0.01 * per(64, c)
    else:
        c.name, c.title, c.model.dialect = "plain", "From nothing", "torchvision"
        c.optimizer.decay_depthwise, c.data.eval.crop, c.data.train.color = True, "center", 0.4
    return override(c, [*(f"{key}={value}" for key, value, _ in choices), *overrides])


def _sound(found: Pictures, place: Path) -> Path:
    """Makes a folder of links to the files that can be read."""
    for split, source in found.sources.items():
        for name in source.files[1]:
            target, link = Path(source.files[0]) / name, place / SOUND / split / name
            if target not in found.damaged and not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target)
    return place / SOUND
