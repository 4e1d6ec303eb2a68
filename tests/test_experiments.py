"""Every experiment: loads with every preset, has only keys of the base, builds its networks."""

import functools
import inspect
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import imagenet, rates, scales
from mnv2_jax.errors import UsageError
from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.paper.results import read
from mnv2_jax.lab.tasks import TASKS, make_model
from mnv2_jax.lab.train import defaults
from mnv2_jax.lab.train.config import flatten, load_config
from mnv2_jax.lab.train.optimizer import make_optimizer, make_schedule
from mnv2_jax.lab.train.sweep import check_variants, seed_groups, variant_config

FOLDER = Path(imagenet.__file__).parent
FILES = sorted(f for f in FOLDER.glob("*.py") if f.stem not in ("__init__", "scales"))
CLASSES = {
    "imagenet2012": (1000, 3), "cifar10": (10, 3), "tfds:imagenette/160px-v2": (10, 3),
    "fashion_mnist": (10, 1), "folder": (5, 3),
    "coco": (80, 3), "voc_segmentation": (21, 3),
}  # fmt: skip


def presets_of(file):
    """Those that its own error lists, and the default."""
    try:
        load_config(f"{file}:no such preset")
    except UsageError as error:
        listed = re.search(r"The choices are (.*)\.$", str(error))
        return ["", *(f":{name}" for name in (listed[1].split(", ") if listed else ()))]
    raise AssertionError(f"{file} takes any preset")


EVERY = [f"{file}{preset}" for file in FILES for preset in presets_of(file)]
ABLATIONS = [
    name for name in EVERY if re.search(r"ablate_(linear|shortcut).py(:imagenet2012)?$", name)
]


def title(path):
    return Path(path).name


@functools.cache
def traced(model, shape):
    """Outputs and variables of a network; many experiments share one."""
    images = jax.ShapeDtypeStruct(shape, np.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)


def shapes(config):
    """The parameters of the network of a configuration, by jax.eval_shape."""
    if config.data.name in CLASSES:
        classes, channels = CLASSES[config.data.name]
    else:
        source = open_source(config.data.name, "test")
        classes = len(TASKS[config.task].classes(source))
        channels = source[0]["image"].shape[-1]
    model = make_model(config, classes, channels)
    size = config.data.resolution
    outputs, variables = traced(model, (1, size, size, channels))
    if config.task == "classify":
        assert outputs.shape == (1, classes)
    elif config.task == "segment":
        assert outputs.shape == (1, size, size, classes)
    else:
        assert outputs[0].shape[2] == 4 and outputs[1].shape[2] == classes + 1
    return variables["params"]


def test_the_experiments_are_found():
    assert {"imagenet", "ablate_linear", "ablate_shortcut"} <= {f.stem for f in FILES}
    assert any(name.endswith("imagenet.py:slim") for name in EVERY)
    for file in (f for f in FILES if "set_scale(c, preset)" in f.read_text()):
        found = {name.partition(":")[2] for name in EVERY if name.startswith(str(file))}
        assert found == {"", *scales.SCALES}


@pytest.mark.parametrize("path", EVERY, ids=title)
def test_it_loads_and_could_be_trained(path):
    config = load_config(path)
    keys = {key for key in flatten(config) if not key.startswith("sweep.variants.")}
    based = {key for key in flatten(defaults.base()) if not key.startswith("sweep.variants.")}
    assert keys == based
    with config.unlocked():
        for key in config.needs:
            group, _, leaf = key.rpartition(".")
            config[group][leaf] = "given"
    assert list(seed_groups(config))
    steps = config.steps or 1000
    for variant in check_variants(config).values():
        epoch = steps / (variant.epochs or 10)
        make_optimizer(variant.optimizer, make_schedule(variant.optimizer, steps, epoch))
        assert flatten(variant).keys() == flatten(config).keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.nightly] * (":" in path)) for path in EVERY],
    ids=title,
)
def test_its_network_can_be_built(path):
    config = load_config(path)
    assert shapes(variant_config(config, list(config.sweep.variants)[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("path", ABLATIONS, ids=title)
def test_the_variants_of_an_ablation_have_the_same_parameters(path):
    config = load_config(path)
    found = [shapes(variant_config(config, name)) for name in config.sweep.variants]
    assert len(found) > 1
    for other in found[1:]:
        assert other == found[0]
    models = [make_model(variant_config(config, n), 10, 3) for n in config.sweep.variants]
    assert len({(m.bottleneck, m.shortcut) for m in models}) == len(models)


@pytest.mark.slow
def test_no_two_experiments_share_a_folder():
    """The default preset and its own name are one experiment."""
    names = {}
    for path in EVERY:
        config = load_config(path)
        names.setdefault(config.name, {})[path] = str(flatten(config))
    shared = {name: found for name, found in names.items() if len(set(found.values())) > 1}
    assert not shared, {name: list(found) for name, found in shared.items()}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_its_docstring_says_how_to_run_it(file):
    text = file.read_text()
    assert f"python main.py --config experiments/{file.name}" in text
    assert inspect.cleandoc(text)


def test_the_base_comments_on_what_a_reader_must_know():
    """Every key that takes a name says which names there are, or where they are listed."""
    source = inspect.getsource(defaults.base)
    for key in ("optimizer.name", "optimizer.schedule", "parallel.launcher", "model.shortcut"):
        (line,) = [row for row in source.splitlines() if row.strip().startswith(f"c.{key} =")]
        assert "# " in line and "or" in line, line


def of_one(config, variant):
    """What one variant trains with, but for its learning rate and what names it."""
    given = flatten(variant_config(config, variant)).items()
    other = ("sweep.", "name", "title", "optimizer.learning_rate")
    return {key: value for key, value in given if not key.startswith(other)}


@pytest.mark.parametrize("preset", [*rates.ABLATIONS, "ablate_linear.fashion_mnist_small"])
def test_rates_are_tried_as_the_variants_are_compared_with_other_seeds(preset):
    name, _, scale = preset.partition(".")
    ablation = load_config(str(FOLDER / f"{name}.py") + f":{scale}" * bool(scale))
    config = load_config(f"{FOLDER}/rates.py:{preset}")
    assert len(set(config.sweep.seeds)) == 8
    assert not set(config.sweep.seeds) & set(ablation.sweep.seeds)
    tried = {}
    for variant in config.sweep.variants:
        own = variant.partition("@")[0]
        tried.setdefault(own, []).append(variant_config(config, variant).optimizer.learning_rate)
        assert of_one(config, variant) == of_one(ablation, own)
    assert tried == {own: [0.025, 0.05, 0.1, 0.2, 0.4] for own in ablation.sweep.variants}


@pytest.mark.parametrize(
    ("scores", "rate"),
    [
        (((0.80, 0.82), (0.90, 0.92), (0.70, 0.72)), 0.1),
        (((0.90, 0.92), (0.88, 0.90), (0.70, 0.72)), 0.05),  # 0.1 is two standard errors below
        (((0.88, 0.96), (0.90, 0.90), (0.70, 0.72)), 0.1),  # and here half of one
        (((0.90, 0.94), (0.70, 0.72), (0.91, 0.95)), 0.2),  # as near to 0.1, and better
        (((0.90,), (0.89,), (0.88,)), 0.05),  # one seed has no error
    ],
)
def test_a_rate_is_chosen_by_its_mean_and_ties_by_their_distance(scores, rate):
    names = ("v@50e-3", "v@100e-3", "v@200e-3")
    assert rates.choose(dict(zip(names, scores, strict=True))) == {"v": rate}


def test_rates_are_not_chosen_from_another_experiment():
    with pytest.raises(UsageError, match="'linear' names no learning rate: give the folder"):
        rates.choose({"linear": [0.9]})


def test_the_rates_of_the_ablations_are_those_that_were_chosen():
    found = (FOLDER.parent / "results").glob("rates_*")
    chosen = {f.name.removeprefix("rates_"): rates.choose(read(f).scores) for f in found}
    assert chosen == scales.RATES


def test_a_variant_gets_the_rate_that_was_chosen_at_its_scale(monkeypatch):
    monkeypatch.setitem(scales.RATES, "ablate_linear", {"linear": 0.2, "relu6": 0.05})
    for preset, expected in (("digits", [0.2, 0.05]), ("fashion_mnist", [0.1, 0.1])):
        config = load_config(f"{FOLDER}/ablate_linear.py:{preset}")
        variants = check_variants(config).values()
        assert [variant.optimizer.learning_rate for variant in variants] == expected
