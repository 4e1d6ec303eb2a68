"""The small files of a run: written whole, with whose they are and a hash over all of it.

A run's identity is a hash of its configuration, so nothing of another run, variant or seed is
taken for its own. Release 0.1.0 wrote none of this: where it began a run, its files are read as
they are.
"""

import base64
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import UnreadableFile, write_json
from mnv2_jax.lab.model_folder import CARD, DESCRIPTION, TENSORS, save_model
from mnv2_jax.lab.seal import OF, SEAL, Foreign, check_seal, digest, hash_file, read_json, sealed

CONFIG, RESULT, METRICS = "config.json", "result.json", "metrics.jsonl"
DATA = "data.json"  # what the data of a run are made of
RIGHT = "right.json"  # which test images a seed gets right, a bit for each
# By which share of the images the bits may miss the accuracy that they explain, for another program
# may round a near tie the other way.
TOLERANCE = 1e-3
MODEL = (TENSORS, DESCRIPTION, CARD)
# What another start may change in the folder of a run: no step computes anything else with it.
# Of the length, see `sweep.check_owner`.
FREE = ("title", "data.threads", "data.bad_record_budget", "checkpoint_minutes")
FREE += ("keep_checkpoints", "stop_after_skipped", "patience", "time", "sweep.delta", "sweep.looks")
FREE += ("profile",)
LENGTH = ("steps", "epochs")
# Keys that change no result.
IDLE = {*FREE, "name", "log_every"} - {"patience", "time"}
# What a result has at least, as all releases wrote it.
FIELDS = {"seed": int, "steps": int, "seconds": (int, float), "metrics": dict, "skipped": int}
FIELDS["model_sha256"] = str
log = logging.getLogger(__name__)


class Identity(NamedTuple):
    """Whose something is: a run's, a variant's and seeds'; `sealed` if all of the run says so."""

    run: str = ""
    variant: str = ""
    seeds: tuple[int, ...] = ()
    sealed: bool = False

    def of(self, **more: Any) -> dict[str, Any]:
        """What stands in a record."""
        return {"run": self.run, "variant": self.variant, "seeds": list(self.seeds)} | more


def identity_of(config: Mapping[str, Any]) -> Identity:
    """Returns the identity of a run from the content of its `config.json`."""
    fixed = {k: v for k, v in config.items() if k not in (*FREE, *LENGTH, SEAL)}
    return Identity(digest([SEAL in config, fixed])[:16], sealed=SEAL in config)


def read_config(workdir: Path) -> dict[str, Any]:
    """Reads the configuration of the run in a folder, flattened, with its seal."""
    path = workdir / CONFIG
    try:
        config = read_json(path)
        check_seal(config, must=False)
        if not isinstance(config.get("sweep.seeds"), list):
            raise ValueError("is not the configuration of a training")
    except ValueError as error:
        raise UsageError(
            f"{path} {error}. Give another --workdir; or remove this file, and the same command "
            "writes it anew and takes nothing of another run."
        ) from error
    return config


def read_data(workdir: Path, run: str) -> dict[str, Any] | None:
    """Reads what the data of a run are made of; None where none is kept. Damage is refused."""
    path = workdir / DATA
    if not os.path.lexists(path):
        return None
    try:
        content = read_json(path)
        check_seal(content, True, {"run": run})
    except ValueError as error:
        remedy = "Remove it to go on with the data as they are now."
        raise UsageError(f"{path} {error}. {remedy}") from error
    return content


def write_model(
    folder: Path, variables: Any, description: Any, result: Any, whose: Identity, more: Any = ()
) -> None:
    """Writes the model of a seed and, last, its result, with hashes of the files and of `more`."""
    of = whose.of(step=result["steps"])
    if held_out := description.get("held_out"):
        held_out = [part.format(seed=result["seed"]) for part in held_out]
        description = description | {"held_out": held_out}
    save_model(folder, variables, description | {OF: of})
    files = [folder / name for name in MODEL] + [*more]
    hashes = {str(path.relative_to(folder)): hash_file(path) for path in files}
    whole = {**result, "model_sha256": hashes[TENSORS], "files": hashes}
    write_json(folder / RESULT, sealed(whole, of))


def read_result(folder: Path, identity: Identity, files: bool = True) -> dict[str, Any]:
    """Reads the result of a seed, and compares it and the files it names with their hashes.

    Raises a ValueError, whose message begins with the file, or Foreign if it is another's.
    """
    try:
        result = read_json(folder / RESULT)
        of = identity.of() if identity.run and SEAL in result else None
        check_seal(result, identity.sealed, of)
        for field, kind in FIELDS.items():
            if not isinstance(result.get(field), kind) or isinstance(result[field], bool):
                raise ValueError(f"has no {field} that can be read")
        for name, value in result["metrics"].items():
            if value is not None and type(value) not in (int, float):
                raise ValueError(f"has {value!r} for {name}, which is no number")
        if result["seed"] != identity.seeds[0]:
            raise Foreign(f"belongs to seed {result['seed']}, not to {identity.seeds[0]}")
    except ValueError as error:
        raise type(error)(f"{RESULT} {error}") from error
    for name, problem in changed_files(folder, result).items() if files else ():
        raise ValueError(f"{name} {problem}")
    return result


class Right(NamedTuple):
    """Which test images a seed gets right, with the weights that it saved."""

    split: str  # of its metrics: "eval_ema" where the weights are averaged, else "eval"
    data: str  # a key of `data.json`
    images: np.ndarray  # (n,) of bool, in the order of the set


def write_right(
    folder: Path, data: str, images: np.ndarray, result: Mapping[str, Any], whose: Identity
) -> None:
    """Writes which images are right, beside the result that they belong to."""
    split = "eval_ema" if "eval_ema/accuracy" in result["metrics"] else "eval"
    content = {
        "split": split, "data": data, "n": len(images), "model_sha256": result["model_sha256"],
        "right": base64.b64encode(np.packbits(images)).decode(),
    }  # fmt: skip
    write_json(folder / RIGHT, sealed(content, whose.of()))


def read_right(folder: Path, result: Mapping[str, Any], whose: Identity | None = None) -> Right:
    """Reads what `write_right` wrote, which has to explain the accuracy of the result.

    Raises a ValueError, whose message begins with the file; none may be there.
    """
    try:
        content = read_json(folder / RIGHT)
        check_seal(content, True, whose.of() if whose else None)
        if content["model_sha256"] != result.get("model_sha256"):
            raise ValueError("is of another model")
        split, data, n, coded = (content[key] for key in ("split", "data", "n", "right"))
        bits = np.frombuffer(base64.b64decode(coded, validate=True), np.uint8)
        images = np.unpackbits(bits, count=n).astype(bool)
        accuracy = float(result["metrics"][f"{split}/accuracy"])
        if not abs(images.mean() - accuracy) <= TOLERANCE:
            raise ValueError(f"has {images.sum()} of {n} right, and the accuracy is {accuracy:g}")
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{RIGHT} {first_line(error)}") from error
    return Right(split, data, images)


def changed_files(folder: Path, result: Mapping[str, Any]) -> dict[str, str]:
    """Says what is wrong with the files that a result names, by their names."""
    named = {TENSORS: result["model_sha256"]} if "model_sha256" in result else {}
    problems = {}
    for name, expected in (named | result.get("files", {})).items():
        try:
            same = hash_file(folder / name) == expected
            problems[name] = "" if same else "is not what was written: its sha256 is another"
        except UnreadableFile as error:
            problems[name] = error.reason
    return {name: problem for name, problem in problems.items() if problem}


def say_what_changed(folder: Path) -> None:
    """Warns of a model that is not as its training wrote it, if that can be told."""
    try:
        named = read_json(folder / RESULT).get("files", {})
        problems = changed_files(folder, {"files": {k: named[k] for k in MODEL[:2] if k in named}})
    except (ValueError, TypeError, AttributeError):
        return
    for name, problem in problems.items():
        log.warning("%s %s: it may have been edited, or damaged", folder / name, problem)
