"""Configuration files: loading, command-line overrides, and the difference between two of them.

A configuration file is Python with a function `get_config(preset)` that returns a `ConfigDict`;
`path/to/file.py:preset` picks a preset. It may bring parts of networks of its own, in a dictionary
`PARTS` as `mnv2_jax.add_parts` takes it, and name them in its configuration; and a function
`tracker`, see `log.tracked`. What cannot be used is refused with a UsageError.
"""

import ast
import difflib
import functools
import importlib.util
import inspect
import json
import math
import operator
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference, FrozenConfigDict

from mnv2_jax.errors import UsageError, shown, typed_line, unknown
from mnv2_jax.files import user_path

OVERRIDE = "--config."  # how a command line sets a key
OF_START = ("spec", "width", "dialect", "expand")  # keys of `model` that a start decides
KINDS = {int: "an integer", float: "a number", bool: "True or False", tuple: "a tuple"}
SYNONYMS = {  # keys by what other projects call them
    "lr": "optimizer.learning_rate", "base_lr": "optimizer.learning_rate",
    "l2": "optimizer.weight_decay", "scheduler": "optimizer.schedule",
    "num_epochs": "epochs", "num_steps": "steps", "max_steps": "steps", "train_steps": "steps",
    "seed": "sweep.seeds", "variants": "sweep.variants", "dataset": "data.name",
    "data_dir": "data.root", "image_size": "data.resolution", "size": "data.resolution",
    "workers": "data.threads", "num_workers": "data.threads", "precision": "model.dtype",
    "alpha": "model.width", "multiplier": "model.width", "width_mult": "model.width",
    "ema": "ema_decay", "pretrained": "init.model", "checkpoint": "init.model",
}  # fmt: skip


def load_config(path: str, overrides: Sequence[str] = ()) -> Any:
    """Loads `file.py[:preset]` as a locked `ConfigDict`, with overrides `key.key=value` applied."""
    return load_experiment(path, overrides)[0]


def load_experiment(path: str, overrides: Sequence[str] = ()) -> tuple[Any, Any]:
    """Loads what `load_config` does, and the function `tracker` of the file if it has one."""
    name, _, preset = path.partition(":")
    module = execute(Path(name))
    get_config, tracker = (getattr(module, own, None) for own in ("get_config", "tracker"))
    if not callable(get_config):
        raise UsageError(
            f"configuration {name!r} defines no function get_config: add one that returns a "
            "ConfigDict, as experiments/imagenet.py does."
        )
    if tracker is not None and not callable(tracker):
        want = "give a function (config, folder, step) that returns two, to write and to finish"
        raise UsageError(f"tracker in {name!r} is {shown(tracker)}: {want}.")
    wants = len(inspect.signature(get_config).parameters)
    if preset and not wants:
        raise UsageError(f"{name} has no presets, but {preset!r} was asked for: leave it out.")
    with told_in_a_line(name):
        config = get_config(preset) if preset else get_config()
    if not isinstance(config, ConfigDict):
        returned = f"get_config in {name} returned {shown(config)}"
        raise UsageError(f"{returned}: it must return a ConfigDict.")
    config = override(config, overrides)
    if config.get("init", {}).get("model"):
        follow_start(config, {given.partition("=")[0] for given in overrides})
    return config, tracker


def follow_start(config: Any, overridden: Set[str]) -> None:
    """Gives the network the keys `OF_START` of the model that it starts from.

    What the command line sets, or the experiment to another value than `base` has, stays.
    """
    from mnv2_jax.lab.model_folder import DESCRIPTION, read_description
    from mnv2_jax.lab.train.defaults import base

    description = user_path(config.init.model, "init.model") / DESCRIPTION
    saved = read_description(description)[0]["model"] if description.is_file() else {}
    for key, value in of_start(saved):
        if f"model.{key}" not in overridden and config.model[key] == base().model[key]:
            config.model[key] = value


def of_start(saved: Mapping[str, Any]) -> Iterator[tuple[str, str | float]]:
    """Yields the keys `OF_START` that a saved model has, with their values as they are set."""
    for key in OF_START:
        value = saved.get(key)
        if isinstance(value, Mapping):
            value = json.dumps(value)
        if isinstance(value, str | float):
            yield key, value


def override(config: Any, overrides: Sequence[str]) -> Any:
    """Locks a configuration, sets keys of it by `key.key=value`, and returns it."""
    config.lock()
    for given in overrides:
        key, equals, value = given.partition("=")
        if not equals:
            raise UsageError(f"override {given!r} has no value: write {key}=VALUE.")
        set_key(config, key, value)
    _check_reach(config, {given.partition("=")[0] for given in overrides})
    return config


def _check_reach(config: Any, overridden: Set[str]) -> None:
    """Rejects the override of a key that a variant sets itself, which would be without effect."""
    for name, changes in config.get("sweep", {}).get("variants", {}).items():
        for key in sorted(overridden & flatten(changes).keys()):
            if (own := f"sweep.variants.{name}.{key}") not in overridden:
                reach = f"override {key!r} does not reach the variant {name!r}, which has its own"
                raise UsageError(f"{reach} value: give {OVERRIDE}{own}=VALUE as well.")


def eval_resolution(config: Any) -> int:
    """Returns the side of the images that a trained model is evaluated, and then used, with."""
    return config.data.eval_resolution or config.data.resolution


def execute(file: Path, kind: str = "configuration") -> Any:
    """Executes a user's Python file as a module; adds the `PARTS` of networks that it brings."""
    name = str(file)
    if not file.is_file():
        beside = file.parent != Path() and file.parent.is_dir()
        folder = file.parent if beside else Path("experiments")
        found = sorted(str(f) for f in folder.glob("*.py") if f.is_file() and f.stem[0] != "_")
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        listed = ", ".join(found) or "no Python files there"
        raise UsageError(f"{kind} {name!r} is not a file: {hint}In {folder}/: {listed}.")
    spec = importlib.util.spec_from_file_location(f"experiments.{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{kind} {name!r} is not a Python file: its name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    # Experiments build on each other as `experiments.scales`, wherever the command is run from.
    parent = str(file.resolve().parent.parent)
    if parent not in sys.path:
        sys.path.append(parent)  # last, so that nothing there hides an installed package
    with told_in_a_line(name):
        spec.loader.exec_module(module)
    if not isinstance(parts := getattr(module, "PARTS", {}), Mapping):
        want = "give {kind: {name: part}}, as mnv2_jax.add_parts takes it"
        raise UsageError(f"PARTS in {name!r} is {shown(parts)}: {want}.")
    if parts:
        from mnv2_jax.models.build import add_parts  # JAX is slow to import, and needless for help

        try:
            add_parts(parts)
        except UsageError as error:
            raise UsageError(f"PARTS in {name!r} cannot be used: {error}") from error
    return module


@contextmanager
def told_in_a_line(file: str) -> Iterator[None]:
    """Makes whatever a user's own code raises one line that names the line of its file."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        frames = list(traceback.walk_tb(error.__traceback__))
        lines = [n for frame, n in frames if Path(frame.f_code.co_filename).name == Path(file).name]
        where = f", line {lines[-1]}" if lines and not isinstance(error, SyntaxError) else ""
        reason = f"{typed_line(error)}."
        first: BaseException = error
        while first.__context__:  # an attribute's error stands for a key's
            first = first.__context__
        *_, (frame, _) = traceback.walk_tb(first.__traceback__)
        absent, group = re.search(r'Key "(\w+)" does not exist', str(error)), frame.f_locals
        if absent and isinstance(group.get("self"), ConfigDict):  # a key that the base lacks
            reason = str(unknown_key(absent[1], group["self"].keys()))
            reason += " One of your own is added inside `with config.unlocked():`."
        raise UsageError(f"configuration {file!r} does not load{where}: {reason}") from error


class Optional(FieldReference):
    """A placeholder for a value of a kind, for a key that None is a value of."""

    def __init__(self, kind: type):
        super().__init__(None, field_type=kind)


class Config(ConfigDict):
    """A configuration or a group of one; once it is locked, its keys keep the kinds they have.

    A dictionary given to a group sets the keys that it names.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        if self.is_locked and key in self and not isinstance(value, FieldReference):
            group = self[key]
            if isinstance(group, ConfigDict) and group.is_locked:
                if not isinstance(value, (Mapping, ConfigDict)):
                    raise TypeError(f"{key} is a group of keys, and is given {shown(value)}")
                return group.update(value)
            if not isinstance(group, ConfigDict):
                value = as_kind(self, key, value)
        return super().__setitem__(key, value)


def as_kind(group: Any, key: str, value: Any) -> Any:
    """Returns a value as a key's kind, or raises a TypeError; a tuple's elements keep theirs."""
    kind, old = group.get_type(key), group[key]
    field = dict(group.items(preserve_field_references=True))[key]
    if kind is type(None) or (value is None and isinstance(field, Optional)):
        return value  # without a placeholder, the kind of None is not known
    value, given = _plain_number(value, kind), value
    if kind is tuple and isinstance(value, (list, tuple)):
        of = type(old[0]) if old else object
        value = tuple(_plain_number(item, of) for item in value)
        if old and not all(type(item) is of for item in value):
            value = None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        takes = KINDS.get(kind, "a text") + (f", such as {old!r}" if old is not None else "")
        if kind is tuple and old:
            takes = f"a tuple, each item {KINDS.get(type(old[0]), 'a text')}, such as {old!r}"
        raise TypeError(f"{key!r} is given {shown(given)}: it takes {takes}")
    return value


def _plain_number(value: Any, kind: type) -> Any:
    """Makes numpy's scalars Python's, and whole numbers floats where those are wanted."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if kind is not float or type(value) is not int:
        return value
    return float(value) if abs(value) < sys.float_info.max else math.inf


def group_of(config: Any, key: str) -> tuple[Any, str]:
    """Returns the group that holds a key, given by its dotted path, and its name there."""
    *parents, leaf = key.split(".")
    return functools.reduce(operator.getitem, parents, config), leaf


def set_key(config: ConfigDict, key: str, text: str) -> None:
    """Sets one key, by dotted path, from text that is read as the kind that the key has.

    >>> c = ConfigDict({"model": {"width": 1.0, "spec": "imagenet"}})
    >>> set_key(c, "model.width", "0.5"); set_key(c, "model.spec", "small_32")
    >>> c.model.width, c.model.spec
    (0.5, 'small_32')
    """
    known = {name: value for name, value in flatten(config).items() if value != {}}
    if key not in known:
        if inner := ", ".join(name for name in known if name.startswith(f"{key}.")):
            raise UsageError(f"configuration key {key!r} is a group: set one of {inner}.")
        raise unknown_key(key, known)
    group, leaf = group_of(config, key)
    value = text if group.get_type(leaf) is str and text != "None" else _literal(text)
    try:
        group[leaf] = as_kind(group, leaf, value)
    except TypeError as error:
        raise UsageError(f"configuration key {key!r}: {error}.") from error


def unknown_key(key: str, known: Iterable[str], kind: str = "configuration key") -> UsageError:
    """Builds the error for a key that a configuration does not have.

    >>> print(unknown_key("optimizer.lr", ["optimizer.learning_rate", "steps"]))
    unknown configuration key 'optimizer.lr': did you mean 'optimizer.learning_rate'?
    """
    known = list(known)
    group, _, leaf = key.rpartition(".")
    last = {name: name.rpartition(".")[2] for name in known}
    initials = {name: "".join(word[:1] for word in last[name].split("_")) for name in known}
    spelled = difflib.get_close_matches(leaf, last.values(), n=3)
    near = [name for name in known if leaf in (last[name], initials[name])]
    near.sort(key=lambda name: name.rpartition(".")[0] != group)  # those of its own group first
    near += [name for name in known if name == SYNONYMS.get(leaf)]
    near += [name for close in spelled for name in known if last[name] == close]
    near += [name for name in known if len(leaf) > 2 and leaf in last[name]]
    siblings = [name for name in known if group and name.startswith(f"{group}.")]
    choices = siblings or {name.partition(".")[0] for name in known}
    return unknown(kind, key, choices, list(dict.fromkeys(near))[:3])


def _literal(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def flatten(config: ConfigDict | FrozenConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves of a configuration by dotted path.

    >>> flatten({"model": {"width": 1.0}, "seed": 0})
    {'model.width': 1.0, 'seed': 0}
    """
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        group = isinstance(value, (ConfigDict, FrozenConfigDict, Mapping))
        if group and value:
            leaves |= {f"{name}.{inner}": v for inner, v in flatten(value).items()}
        else:  # a group without keys is a leaf, so that it is not lost
            leaves[name] = {} if group else value
    return leaves


def plain(config: ConfigDict) -> dict[str, Any]:
    """Returns a flattened configuration as JSON gives it back, with lists for tuples."""
    return json.loads(json.dumps(flatten(config), default=str))


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Describes how two flattened configurations differ, in one line; empty if they do not.

    >>> difference({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4})
    'b: 2 -> 3, c: (absent) -> 4'
    """
    keys = sorted(old.keys() | new.keys())
    rows = ((k, *(repr(d[k]) if k in d else "(absent)" for d in (old, new))) for k in keys)
    return ", ".join(f"{key}: {a} -> {b}" for key, a, b in rows if a != b)
