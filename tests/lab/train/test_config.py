"""Configuration files and overrides: what they may be, and one line for what they may not."""

import json
import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.ablate_linear import get_config as digits
from mnv2_jax import UsageError
from mnv2_jax.lab.train import check as check_module
from mnv2_jax.lab.train.check import check
from mnv2_jax.lab.train.config import (
    difference,
    flatten,
    group_of,
    load_config,
    set_key,
    told_in_a_line,
)
from mnv2_jax.lab.train.defaults import base
from mnv2_jax.lab.train.sweep import check_variants
from mnv2_jax.models import build

IMAGENET = "experiments/imagenet.py"


def refused(call, *arguments) -> str:
    with pytest.raises(UsageError) as error:
        call(*arguments)
    text = str(error.value)
    assert "\n" not in text and len(text) < 1200
    return text


def written(tmp_path, text, name="mine.py"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


BODY = "def get_config():\n    c = base()\n    {}\n    return c\n"
BASE = "from mnv2_jax.lab.train.defaults import base\n"
HEADER = "from ml_collections import ConfigDict\n"


def test_presets_and_overrides():
    paper, slim = load_config(IMAGENET), load_config(f"{IMAGENET}:slim")
    assert (paper.loss.label_smoothing, slim.loss.label_smoothing) == (0.0, 0.1)
    changed = load_config(IMAGENET, ["model.width=0.5", "sweep.seeds=(1,2)", "data.root=a=b"])
    assert (changed.model.width, changed.sweep.seeds, changed.data.root) == (0.5, (1, 2), "a=b")
    assert changed.is_locked


@pytest.mark.parametrize(
    ("file", "images", "rate"),
    [("imagenet.py", 96, 0.045), ("imagenet_modern.py:plain", 1024, 0.4)],
)
def test_the_rate_follows_the_batch_unless_it_is_given(file, images, rate):
    path = f"experiments/{file}"
    assert load_config(path, [f"batch_size={images}"]).optimizer.learning_rate == rate
    small = load_config(path, ["batch_size=64"])
    assert math.isclose(small.optimizer.learning_rate, rate * 64 / images)
    given = load_config(path, ["batch_size=64", "optimizer.learning_rate=0.3"])
    assert given.optimizer.learning_rate == 0.3


def test_the_file_is_found_from_anywhere(tmp_path, monkeypatch):
    from pathlib import Path

    place = Path("experiments/ablate_linear.py").absolute()
    monkeypatch.chdir(tmp_path)
    assert load_config(str(place)).name == "ablate_linear"


def test_a_file_that_is_not_there_lists_those_that_are(tmp_path):
    text = refused(load_config, "experiments/ablate_liner.py")
    assert "did you mean experiments/ablate_linear.py" in text and "imagenet.py" in text
    assert "imagenet.py" in refused(load_config, "nowhere/at/all.py")
    assert "no Python files there" in refused(load_config, str(tmp_path / "x.py"))
    assert "is not a file" in refused(load_config, str(tmp_path))
    assert "is not a file" in refused(load_config, "")


def test_presets_that_are_not_there():
    assert "unknown preset 'slin': did you mean 'slim'" in refused(load_config, f"{IMAGENET}:slin")
    text = refused(load_config, "experiments/ablate_linear.py:digit")
    assert "did you mean 'digits'" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:\n", "SyntaxError"),
        ("x = 'cut\n", "SyntaxError"),
        ("\0", "null bytes"),
        ("import not_a_module\n", "line 1: ModuleNotFoundError"),
        ("a = 1\nb = a.c\n", "line 2: AttributeError"),
        ("print(1 / 0)\n", "line 1: ZeroDivisionError"),
        ("config = 1\n", "defines no function get_config"),
        ("get_config = 3\n", "defines no function get_config"),
        ("def get_config():\n    return {}\n", "must return a ConfigDict"),
        ("def get_config():\n    pass\n", "returned None"),
        ("def get_config(a, b):\n    pass\n", "TypeError"),
        (HEADER + "def get_config():\n    c = ConfigDict()\n    c.a.b = 1\n", "line 4: Attribute"),
        (
            HEADER + "def get_config():\n    c = ConfigDict({'ab': 1}).lock()\n    c.abc = 1\n",
            "line 4: unknown configuration key 'abc': did you mean 'ab'?",
        ),
        ("def get_config():\n    raise ValueError('one\\ntwo')\n", "line 2: ValueError: one"),
        ("def get_config():\n    raise ValueError('x' * 10**6)\n", "xxx…"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, message):
    assert message in refused(load_config, written(tmp_path, content))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c.learning_rte = 0.1", "unknown configuration key 'learning_rte'"),
        ("c.optimizer.lr = 0.1", "unknown configuration key 'lr': did you mean 'learning_rate'?"),
        ("c.batch_size = '64'", "TypeError: 'batch_size' is given '64': it takes an integer"),
    ],
)
def test_a_misspelt_key_in_a_file_is_refused_where_it_stands(tmp_path, line, message):
    path = written(tmp_path, f"{BASE}{BODY.format(line)}")
    text = refused(load_config, path)
    assert message in text and "does not load, line 4: " in text


WRONG = [
    None, "no such", ["a"], [None], 0.5, 1e30, -1, -0.5, True, math.nan, math.inf, -math.inf,
    10**40, 10**5000, {}, {"a": 1}, ConfigDict({"a": 1}), (1, "a"), ((1,),), b"x", "x\0y", object(),
    np.float32(0.5), np.float64("nan"), np.int64(-3), np.bool_(True), np.str_("y"), np.zeros(3),
]  # fmt: skip
LEAVES = {key: value for key, value in flatten(base()).items() if ".variants" not in key}
ANY_TEXT = {key for key, value in LEAVES.items() if check_module.RULES[key] is check_module.text}


@pytest.mark.slow
@pytest.mark.parametrize("key", LEAVES)
def test_what_a_file_may_give_a_key(key):
    """Whatever its type, a value is refused in one line that names the key, or is of its kind."""
    for value in WRONG:
        config = digits("digits")
        group, leaf = group_of(config, key)
        try:
            with told_in_a_line("mine.py"):
                group[leaf] = value
            check(config)
        except UsageError as error:
            text = str(error)
            assert leaf in text and "\n" not in text and len(text) < 700
            continue
        kept = flatten(config)[key]
        assert type(kept) in (type(LEAVES[key]), *KINDS_OF_PLACEHOLDERS.get(key, ())), (value, kept)
        json.dumps(kept, allow_nan=False)
        if isinstance(value, str):
            assert key in ANY_TEXT | {"data.root", "init.model", "teacher.model"}


KINDS_OF_PLACEHOLDERS = {
    **dict.fromkeys(("data.root", "init.model", "teacher.model"), (str,)),
    **dict.fromkeys(("model.expansion", "model.output_stride", "data.threads"), (int,)),
    "model.bn_decay": (float,),
}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c.threads = 4", "unknown configuration key 'threads'"),
        ("c['bach_size'] = 8", "unknown configuration key 'bach_size': did you mean 'batch_size'?"),
        ("c.update(bach_size=8)", "did you mean 'batch_size'?"),
        ("c.update({'optimizer': {'lr': 1.0}})", "did you mean 'learning_rate'?"),
        ("c.optimizer = {'name': 'sgd', 'lr': 1.0}", "did you mean 'learning_rate'?"),
        ("c.optimizer = ConfigDict({'learning_rte': 1.0})", "did you mean 'learning_rate'?"),
        ("c.optimiser = ConfigDict()", "did you mean 'optimizer'?"),
        ("c.optimizer = 'sgd'", "optimizer is a group of keys, and is given 'sgd'"),
        ("c.data.train = None", "train is a group of keys, and is given None"),
        ("c.data.threads = 1.5", "'threads' is given 1.5: it takes an integer"),
        ("c.optimizer.learning_rate = True", "is given True: it takes a number, such as"),
        ("c.batch_size = None", "'batch_size' is given None: it takes an integer, such as 1536"),
        (
            "c.sweep.variants = {'default': {'model': {'widht': 1.0}}}",
            "did you mean 'model.width'?",
        ),
        ("c.sweep.variants = {'default': {'model': {'width': True}}}", "'width' is given True"),
        ("c = ConfigDict(c.to_dict()); c.bach_size = 8", "did you mean 'batch_size'?"),
        ("del c.optimizer.name", "locked, you have to unlock it"),
    ],
)
def test_keys_that_a_file_may_not_set(tmp_path, line, message):
    path = written(tmp_path, f"{HEADER}{BASE}{BODY.format(line)}")
    assert message in refused(lambda: check_variants(load_config(path)))


def test_a_dictionary_sets_the_keys_that_it_names():
    config = base()
    config.optimizer = {"name": "sgd", "learning_rate": np.float32(0.5)}
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("sgd", 0.5)
    assert type(config.optimizer.learning_rate) is float and config.optimizer.momentum == 0.9


def test_a_file_may_bring_parts_of_its_own(tmp_path):
    own = BASE + BODY.format("c.model.activation = 'double'")
    path = written(tmp_path, "def double(x):\n    return 2 * x\n" + own)
    assert "unknown model.activation 'double'" in refused(check, load_config(path))
    with open(path, "a") as file:
        file.write("PARTS = {'activation': {'double': double}}\n")
    try:
        for _ in range(2):  # the function of a file that is loaded again replaces its own
            check(load_config(path))
        assert build.build(activation="double").activation(3) == 6
    finally:
        del build.PARTS["activation"]["double"]
    for value, message in (
        ("3", "is 3: give {kind: {name: part}}"),
        ("{'norm': {}}", "unknown kind of part 'norm'"),
        ("{'filter': {'five': 5}}", "filter 'five' is 5: give a function"),
        ("{'activation': {'relu6': base}}", "'relu6' is taken by"),
    ):
        path = written(tmp_path, f"{own}PARTS = {value}\n")
        text = refused(load_config, path)
        assert message in text and f"PARTS in {path!r}" in text


def test_files_of_another_kind(tmp_path):
    (tmp_path / "mine.yaml").write_text("a: 1")
    assert "is not a Python file" in refused(load_config, str(tmp_path / "mine.yaml"))
    (tmp_path / "binary.py").write_bytes(bytes(range(256)))
    assert "does not load" in refused(load_config, str(tmp_path / "binary.py"))


def test_a_preset_for_a_file_without_presets(tmp_path):
    path = written(tmp_path, HEADER + "def get_config():\n    return ConfigDict()\n")
    assert "has no presets, but 'large'" in refused(load_config, f"{path}:large")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("model.widht", "model.width"),
        ("batchsize", "batch_size"),
        ("optimizer.lr", "did you mean 'optimizer.learning_rate'?"),
        ("wd", "did you mean 'optimizer.weight_decay'?"),
        ("bs", "did you mean 'batch_size'?"),
        ("smoothing", "did you mean 'loss.label_smoothing'?"),
        ("model.alpha", "did you mean 'model.width'?"),
        ("data.crop", "The nearest are data.eval.crop, data.train.crop."),
        ("optimizer.foo", "The choices are optimizer.beta1, "),
        ("learning_rate", "optimizer.learning_rate"),
        ("", "batch_size"),
        ("model.width.x", "model.width"),
        ("model.", "model.width"),
        ("__class__", "batch_size"),
    ],
)
def test_unknown_keys_say_what_may_have_been_meant(key, meant):
    text = refused(set_key, base(), key, "1")
    assert f"unknown configuration key {key!r}" in text
    assert meant in text or meant.split(".")[0] in text


def test_a_group_is_not_a_key():
    assert "is a group: set one of model.activation, " in refused(set_key, base(), "model", "1")
    assert "has no value: write batch_size=VALUE" in refused(load_config, IMAGENET, ["batch_size"])


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("batch_size", "64", 64),
        ("epochs", "3", 3.0),
        ("epochs", "1e-3", 1e-3),
        ("optimizer.staircase", "False", False),
        ("optimizer.staircase", "true", True),
        ("data.name", "digits", "digits"),
        ("data.name", "7", "7"),
        ("model.expansion", "4", 4),
        ("model.expansion", "None", None),
        ("data.root", "None", None),
        ("data.root", "/a b/ü", "/a b/ü"),
        ("sweep.seeds", "[3, 4]", (3, 4)),
        ("sweep.seeds", "(5,)", (5,)),
        ("data.train.area", "(0.5, 1)", (0.5, 1.0)),
        ("init.frozen", "('stem',)", ("stem",)),
    ],
)
def test_values_take_the_type_of_their_key(key, text, value):
    config = base().lock()
    set_key(config, key, text)
    found = flatten(config)[key]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("batch_size", "64.0"),
        ("batch_size", "many"),
        ("batch_size", "None"),
        ("batch_size", "True"),
        ("batch_size", ""),
        ("epochs", "None"),
        ("epochs", "3 epochs"),
        ("epochs", "False"),
        ("optimizer.staircase", "1"),
        ("optimizer.staircase", "yes"),
        ("sweep.seeds", "3"),
        ("sweep.seeds", "(a, b)"),
        ("sweep.seeds", "(0.5,)"),
        ("sweep.seeds", "((1,),)"),
        ("sweep.seeds", "(True,)"),
        ("data.train.area", "('a', 1)"),
        ("model.expansion", "six"),
        ("epochs", "__import__('os').getcwd()"),
        ("epochs", "[" * 10000),
        ("sweep.seeds", "{1: 2}"),
    ],
)
def test_values_of_another_type_are_refused(key, text):
    config = base().lock()
    before = flatten(config)
    message = refused(set_key, config, key, text)
    assert key in message and "it takes" in message
    assert flatten(config) == before


def test_absurd_numbers_are_numbers_until_they_are_checked():
    config = base().lock()
    set_key(config, "epochs", "1e400")
    assert config.epochs == math.inf
    set_key(config, "epochs", "1" + "0" * 400)
    assert config.epochs == math.inf


def test_differences_name_every_key_that_changed():
    a, b = flatten(base()), flatten(base())
    assert difference(a, b) == ""
    b["model.width"], b["new"] = 0.5, None
    del b["steps"]
    assert (
        difference(a, b) == "model.width: 1.0 -> 0.5, new: (absent) -> None, steps: 0 -> (absent)"
    )


def test_a_group_without_keys_is_not_lost():
    assert flatten(ConfigDict({"variants": {"a": {}, "b": {"x": 1}}})) == {
        "variants.a": {}, "variants.b.x": 1
    }  # fmt: skip
