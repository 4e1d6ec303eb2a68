"""What a configuration becomes: exact evaluation, data from everywhere, other models to start from.

Training itself is in `test_sweep.py`.
"""

import itertools
import json
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2_jax import UsageError, normalize
from mnv2_jax.lab.data import open_source
from mnv2_jax.lab.devices.sharding import make_plan
from mnv2_jax.lab.model_folder import load_model, save_model
from mnv2_jax.lab.tasks import TASKS
from mnv2_jax.lab.train import run as run_module
from mnv2_jax.lab.train import step as step_module
from mnv2_jax.lab.train.config import load_config
from mnv2_jax.lab.train.defaults import base
from mnv2_jax.lab.train.log import read_rows
from mnv2_jax.lab.train.run import make_evaluate, make_run
from mnv2_jax.lab.train.sweep import run_sweep
from mnv2_jax.models.build import look_up_part
from tests.lab.data.pictures import encoded, photo, write_mnist
from tests.lab.train.setting import tiny


def one(**changes):
    """A configuration of one variant and one seed."""
    config = tiny(**{"steps": 4, "seeds": (0,), **changes})
    with config.unlocked():
        del config.sweep.variants["relu6"]
        config.sweep.claim = ()
    return config


def images_of(count, size=8, channels=1, classes=10, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (count, size, size, channels), np.uint8),
        "label": rng.integers(0, classes, count).astype(np.int32),
    }


class Few:
    """A set of so many random images; in memory, or streamed."""

    classes = tuple("0123456789")

    def __init__(self, count, resident):
        self._arrays, self._resident = images_of(count), resident

    def __len__(self):
        return len(self._arrays["label"])

    def __getitem__(self, index):
        return {name: array[index] for name, array in self._arrays.items()}

    def arrays(self):
        return self._arrays if self._resident else None


def expected_scores(model, variables, arrays):
    """Accuracy, top-5 and loss over all examples at once, in numpy."""
    logits = np.float64(
        model.clone(norm_axis=None).apply(
            variables, normalize(jnp.asarray(arrays["image"]), model.dialect)
        )
    )
    label = arrays["label"]
    own = logits[np.arange(len(label)), label]
    rank = (logits > own[:, None]).sum(1)
    shifted = logits - logits.max(1, keepdims=True)
    loss = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(label)), label]
    return {"accuracy": (rank < 1).mean(), "top5": (rank < 5).mean(), "loss": loss.mean()}


AT_NIGHT = [(1, False), (8, True), (8, False)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "resident"),
    [(1, True), *(pytest.param(*at, marks=pytest.mark.nightly) for at in AT_NIGHT)],
)
def test_evaluation_counts_every_example_once(monkeypatch, devices, resident):
    """For less than one batch, and for a last batch that is nearly empty."""
    variables = None
    for count in (1, 33):
        held_out = Few(count, resident)

        def opened(name, split, root, held_out=held_out):
            return held_out if split == "test" else open_source(name, split, root)

        monkeypatch.setattr(run_module, "open_source", opened)
        run = make_run(one(eval_batch_size=10, parallel={"devices": devices}), 1)
        if variables is None:
            variables = run.fresh(run.keys((0,))).variables
            variables = jax.tree.map(  # so that not all examples get the same answer
                lambda v: v * 3 + 0.01, variables
            )
        found = run.evaluate(variables)
        expected = expected_scores(run.model, jax.device_get(variables), held_out.arrays() or
                                   held_out._arrays)  # fmt: skip
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], [value], rtol=1e-5, err_msg=name)


class Digest:
    """A task whose metrics are whole numbers that only one set of examples gives."""

    def metrics(self, variables, batch):
        del variables
        weight = np.arange(1, 65).reshape(1, 8, 8, 1) % 13
        pixels = (batch["image"].astype("int32") * weight).sum((1, 2, 3)) % 9973
        mask = batch["mask"].astype("int32")
        return {"pixels": (pixels * mask).sum(), "labels": (batch["label"] * mask).sum()}

    def summarize(self, sums):
        return sums


@pytest.mark.slow
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_sets_of_every_size_are_evaluated_exactly(devices, resident):
    """From one example to one more than three batches; each size of a resident set compiles."""
    size, plan, digest, held_out = max(4, devices), make_plan(devices=devices), Digest(), Few(1, 0)
    edges = (1, size - 1, size, size + 1, 2 * size, 3 * size + 1)
    for count in edges if resident else range(1, 3 * size + 2):
        held_out._arrays, held_out._resident = images_of(count), resident
        if resident or count == 1:  # what is streamed has the same shapes for every size
            config = one(eval_batch_size=size)
            feed = run_module.eval_feed(TASKS[config.task], config, held_out, resident, 1, devices)
            evaluate, _ = make_evaluate(digest, feed, plan)
        expected = digest.metrics({}, held_out._arrays | {"mask": np.ones(count)})
        assert evaluate({}) == {name: [total] for name, total in expected.items()}, count


@pytest.mark.slow
@pytest.mark.nightly
def test_several_seeds_are_evaluated_each_for_itself():
    run, alone = make_run(one(), 4), make_run(one(parallel={"devices": 1}), 1)
    states = run.fresh(run.keys((3, 4, 5, 6)))
    found = run.evaluate(states.variables)
    for i in range(4):
        variables = jax.tree.map(lambda v, i=i: jnp.asarray(np.asarray(v)[i]), states.variables)
        expected = alone.evaluate(variables)
        for name in expected:
            np.testing.assert_allclose(found[name][i], expected[name][0], rtol=1e-5)


@pytest.mark.parametrize("seed", [0, 7])
def test_sets_that_are_split_anew_keep_their_classes_and_share_nothing(seed):
    whole = {part: open_source("digits", part).arrays() for part in ("train", "test")}
    parts = {part: open_source("digits", f"{part}@{seed}").arrays() for part in whole}
    for part, arrays in parts.items():
        counts = [np.bincount(own["label"]) for own in (arrays, whole[part])]
        np.testing.assert_array_equal(*counts)

    def rows(arrays):
        labels, images = arrays["label"], arrays["image"].reshape(len(arrays["label"]), -1)
        return sorted(np.c_[images, labels].tolist())

    assert rows(parts["train"]) != rows(whole["train"])
    together = [
        {key: np.concatenate([own[key] for own in both.values()]) for key in ("image", "label")}
        for both in (parts, whole)
    ]
    assert rows(together[0]) == rows(together[1])


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [pytest.param((3,), marks=pytest.mark.nightly), (3, 5)])
def test_each_seed_trains_and_evaluates_on_its_own_split(seeds):
    config = one(data={"resplit": True, "train": {"crop": "none"}}, parallel={"devices": 1})
    run = make_run(config, len(seeds))
    steps = -(-1437 // config.batch_size)
    found = zip(range(steps), run.train.batches(seeds, 0), strict=False)
    fetch, resident = run.train.fetch, run.train.resident()
    labels = [fetch(resident, rows)["label"].reshape(len(seeds), -1) for _, rows in found]
    variables = run.fresh(run.keys(seeds)).variables
    scores = run.evaluate(variables, seeds)
    for i, seed in enumerate(seeds):
        own = {part: open_source("digits", f"{part}@{seed}").arrays() for part in ("train", "test")}
        epoch = np.concatenate([step[i] for step in labels])[:1437]
        np.testing.assert_array_equal(np.bincount(epoch), np.bincount(own["train"]["label"]))
        alone = jax.tree.map(lambda v, i=i: v[i], variables) if len(seeds) > 1 else variables
        expected = expected_scores(run.model, jax.device_get(alone), own["test"])
        for name, value in expected.items():
            np.testing.assert_allclose(scores[name][i], value, rtol=1e-5, err_msg=name)


def test_sets_that_are_not_on_the_device_are_not_split_anew(tmp_path):
    with pytest.raises(UsageError, match="cannot be split anew for each seed"):
        make_run(one(data={"resplit": True, "on_device": False}), 1)
    with pytest.raises(UsageError, match="test@x is not train@SEED"):
        open_source("digits", "test@x")


@pytest.mark.parametrize("crop", ["none", "center", "stretch"])
def test_sets_on_the_device_are_evaluated_as_configured(crop):
    """As they are when they are streamed."""
    batches = []
    for on_device in (True, False):
        config = one(
            data={"on_device": on_device, "eval": {"crop": crop, "fraction": 0.75}},
            eval_batch_size=360,
        )
        source = open_source("digits", "test")
        feed = run_module.eval_feed(TASKS[config.task], config, source, on_device, 1, 1)
        (rows,) = feed.batches((), 0)
        batches.append(jax.device_get(feed.fetch(feed.resident(), rows)))
    for name in ("image", "label", "mask"):
        np.testing.assert_array_equal(batches[0][name], batches[1][name])
    same = (batches[0]["image"] == open_source("digits", "test").arrays()["image"]).all()
    assert same == (crop == "none")


def test_training_sets_are_resized_alike_on_the_device_and_streamed():
    config = one(data={"resolution": 11, "train": {"crop": "none"}})
    source = open_source("digits", "train")
    resident = run_module.train_feed(TASKS[config.task], config, source, 1)
    first = next(resident.batches((0,), 0))
    ours = jax.device_get(resident.fetch(resident.resident(), first))
    config.data.on_device = False
    streamed = next(run_module.train_feed(TASKS[config.task], config, source, 1).batches((0,), 0))
    for name in ("image", "label", "mask", "row"):
        np.testing.assert_array_equal(ours[name], streamed[name])


@pytest.mark.slow
@pytest.mark.parametrize("resident", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_evaluation_may_be_at_another_resolution(resident):
    """The images are those of a run that trains at it, and so is the score of the same network."""
    larger = {"eval_resolution": 12, "on_device": resident}
    run = make_run(one(data=larger), 1)
    alike = make_run(one(data={"resolution": 12, "on_device": resident}), 1)
    variables = run.fresh(run.keys((0,))).variables
    np.testing.assert_array_equal(
        run.evaluate(variables)["loss"], alike.evaluate(variables)["loss"]
    )
    training = next(rows for rows in run.lowered((0,)).batches if "image" in rows)
    assert training["image"].shape[1:3] == (8, 8)


def test_a_run_starts_where_it_is_told(monkeypatch):
    run = make_run(one(data={"on_device": True}), 1)
    whole = [jax.device_get(rows) for rows in itertools.islice(run.rows((0,), 0), 6)]
    for expected, found in zip(whole[4:], run.rows((0,), 4), strict=False):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)


# Data from files.


def write_folder(root, count=12, corrupt=()):
    """Two classes, told apart by their brightness; the listed training files are cut short."""
    for split, n in (("train", count), ("val", 5)):
        for label, name in enumerate(("dark", "light")):
            place = root / split / name
            place.mkdir(parents=True)
            for i in range(n):
                pixels = photo(20, 24, seed=i) // 3 + 150 * label
                content = encoded(pixels.astype(np.uint8))
                if split == "train" and f"{name}/{i}" in corrupt:
                    content = content[:50]
                (place / f"{i:02}.jpg").write_bytes(content)
    return str(root)


def folder_config(root, **changes):
    config = one(data={"name": "folder", "root": root, "resolution": 16}, **changes)
    config.update({"batch_size": 8, "eval_batch_size": 4})
    return config


@pytest.mark.slow
def test_a_folder_of_images_is_trained_with_a_corrupt_one_masked(tmp_path, caplog):
    """The very first file is the corrupt one: the number of channels comes from another."""
    root = write_folder(tmp_path / "images", corrupt={"dark/0"})
    config = folder_config(root, log_every=1, parallel={"devices": 2})
    config.steps = 6  # two epochs
    with caplog.at_level(logging.WARNING, "mnv2_jax"):
        run_sweep(config, tmp_path / "run", ("c",), quiet=True)
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("mnv2_jax")]
    assert len(warnings) == 1 and "dark/00.jpg" in warnings[0]
    rows = read_rows(tmp_path / "run/linear/seed_0/metrics.jsonl")
    train = [row for row in rows if row["split"] == "train"]
    assert len(train) == 6 and all(np.isfinite(row["loss"]) for row in train)
    # 7 of 8 rows count where the corrupt one is: its accuracy is a seventh's multiple.
    parts = [row["accuracy"] * 8 for row in train]
    assert sum(abs(part - round(part)) > 1e-4 for part in parts) <= 2
    saved = load_model(tmp_path / "run/linear/seed_0")
    assert saved.classes == ("dark", "light") and saved.model.in_channels == 3


def test_masked_rows_of_a_stream_are_counted_and_change_nothing_else(tmp_path):
    """Two epochs of 24 with one damaged file are 46 counted rows."""
    root = write_folder(tmp_path / "images", corrupt={"light/3"})
    run = make_run(folder_config(root, parallel={"devices": 1}), 1)
    assert run.epoch_steps == 3
    masks = [np.asarray(rows["mask"]) for rows in itertools.islice(run.rows((0,), 0), 6)]
    assert np.sum(masks) == 46


@pytest.mark.nightly
@pytest.mark.slow
def test_too_many_corrupt_files_stop_the_run_with_one_line(tmp_path):
    corrupt = {f"{name}/{i}" for name in ("dark", "light") for i in range(8)}
    root = write_folder(tmp_path / "images", corrupt=corrupt)
    config = folder_config(root, parallel={"devices": 1})
    with pytest.raises(UsageError, match=r"cannot be used, above the budget of 1.0%") as error:
        run_sweep(config, tmp_path / "run", ("c",), quiet=True)
    assert "\n" not in str(error.value) and ".jpg" in str(error.value)


def test_a_folder_of_only_corrupt_files_is_refused(tmp_path):
    corrupt = {f"{name}/{i}" for name in ("dark", "light") for i in range(12)}
    root = write_folder(tmp_path / "images", corrupt=corrupt)
    with pytest.raises(
        UsageError, match=r"none of the 24 records .*dark/00.jpg: cannot be decoded"
    ):
        make_run(folder_config(root), 1)


@pytest.mark.slow
def test_a_corrupt_image_of_the_evaluation_set_is_named(tmp_path):
    root = write_folder(tmp_path / "images")
    (tmp_path / "images/val/dark/02.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(UsageError, match=r"evaluation needs every record.*02.jpg") as error:
        run_sweep(folder_config(root), tmp_path / "run", ("c",), quiet=True)
    assert "\n" not in str(error.value)


@pytest.mark.nightly
@pytest.mark.slow
def test_a_set_prepared_for_tensorflow_datasets_is_trained(tmp_path):
    from mnv2_jax.lab.data import prepare

    write_mnist(tmp_path)
    prepare("fashion_mnist", str(tmp_path), idx_root=str(tmp_path))
    config = one(
        data={"name": "tfds:fashion_mnist", "root": str(tmp_path), "resolution": 12},
        parallel={"devices": 1},
    )
    config.update({"batch_size": 4, "eval_batch_size": 4})
    run_sweep(config, tmp_path / "run", ("c",), quiet=True)
    result = json.loads((tmp_path / "run/linear/seed_0/result.json").read_text())
    assert result["steps"] == 4 and round(result["metrics"]["eval/accuracy"] * 5, 6) in range(6)
    assert load_model(tmp_path / "run/linear/seed_0").classes[-1] == "ankle boot"


# Starting from another model, and learning from one.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    run_sweep(one(parallel={"devices": 1}), workdir, ("c",), quiet=True)
    return str(workdir / "linear/seed_0")


@pytest.mark.slow
def test_fine_tuning_starts_at_the_saved_model(trained):
    run = make_run(one(init={"model": trained}), 1)
    state = run.fresh(run.keys((0,)))
    saved = load_model(trained)
    jax.tree.map(np.testing.assert_array_equal, dict(state.variables), saved.variables)
    jax.tree.map(np.testing.assert_array_equal, state.ema, saved.variables)


def test_fine_tuning_makes_the_classifier_of_other_classes_anew(trained, tmp_path):
    root = write_folder(tmp_path)
    config = folder_config(root, init={"model": trained})
    with pytest.raises(UsageError, match=r"-params/stem/conv/kernel\(3, 3, 1, 4\)"):
        make_run(config, 1)  # three channels instead of one
    for place in (tmp_path / "train", tmp_path / "val"):
        for file in place.glob("*/*.jpg"):
            file.write_bytes(encoded(photo(8, 8, 1), "PNG"))
    saved = load_model(trained)
    state_of = step_module.start_from(
        saved.variables,
        {
            "params": saved.variables["params"]
            | {"classifier": {"kernel": np.zeros((8, 2)), "bias": np.zeros(2)}},
            "batch_stats": saved.variables["batch_stats"],
        },
    )
    assert state_of["params"]["classifier"]["kernel"].shape == (8, 2)
    np.testing.assert_array_equal(
        state_of["params"]["stem"]["conv"]["kernel"],
        saved.variables["params"]["stem"]["conv"]["kernel"],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda names: names, True),
        (lambda names: [], True),  # the number decides
        (lambda names: names[1:] + names[:1], False),
        (lambda names: [f"other {name}" for name in names], False),
    ],
)
def test_a_classifier_of_as_many_other_classes_is_made_anew(trained, tmp_path, change, kept):
    saved = load_model(trained)
    description = saved.description | {"classes": change(list(saved.classes))}
    save_model(tmp_path, saved.variables, description)
    run = make_run(one(init={"model": str(tmp_path)}), 1)
    params = jax.device_get(run.fresh(run.keys((0,))).params)
    same = {
        name: jax.tree.all(jax.tree.map(np.array_equal, params[name], leaves))
        for name, leaves in saved.variables["params"].items()
    }
    assert same.pop("classifier") == kept and all(same.values())


def test_a_saved_model_of_another_width_is_refused_with_what_differs(trained):
    with pytest.raises(
        UsageError,
        match=r"- saved, \+ configured.*-batch_stats/\S+/mean\(8,\), \+batch_stats/",
    ) as error:
        make_run(one(init={"model": trained}, model={"width": 2.0}), 1)
    assert "\n" not in str(error.value) and "model.width" in str(error.value)


def test_a_saved_model_of_another_dialect_is_refused(trained):
    """With TensorFlow's padding and range it would be worse than it is, without a word."""
    with pytest.raises(UsageError, match=r"has padding same .* symmetric: set model.dialect to 's"):
        make_run(one(init={"model": trained}, model={"dialect": "torchvision"}), 1)
    make_run(one(init={"model": trained}, model={"dialect": "keras", "bn_decay": 0.5}), 1)


def test_further_training_has_the_network_of_its_start_unless_another_is_given(trained):
    start = [f"init.model={trained}"]
    config, saved = load_config("experiments/finetune.py", start), load_model(trained).description
    for key in ("spec", "width", "dialect"):
        assert config.model[key] == saved["model"][key]
    assert config.model.spec != base().model.spec
    other = load_config("experiments/finetune.py", [*start, "model.spec=imagenet"])
    assert other.model.spec == "imagenet"
    assert load_config("experiments/detect_scenes.py", start).model.spec == "small_96"  # its own


def test_further_training_keeps_what_a_start_has_changed_of_its_dialect(trained, tmp_path):
    saved = load_model(trained)
    dialect = {"name": "keras", "mean": [0.0], "std": [1.0]}  # of a model with its own scaling
    network = {**saved.description["model"], "dialect": dialect}
    save_model(tmp_path / "own", saved.variables, {**saved.description, "model": network})
    change = [f"init.model={tmp_path / 'own'}"]
    config = load_config("experiments/finetune.py", change)
    assert json.loads(config.model.dialect) == dialect
    assert (
        look_up_part("dialect", config.model.dialect) == load_model(tmp_path / "own").model.dialect
    )
    for wrong in ("{", "[{]", '{"name": "keras", "mean": "x"}', '{"name": "other"}'):
        with pytest.raises(UsageError, match="dialect"):
            look_up_part("dialect", wrong)


@pytest.mark.nightly
@pytest.mark.slow
def test_frozen_modules_stay_and_the_others_learn(trained, tmp_path):
    config = one(
        init={"model": trained, "frozen": ("stem", "block_"), "frozen_norm": True},
        parallel={"devices": 1},
    )
    run_sweep(config, tmp_path, ("c",), quiet=True)
    before, after = load_model(trained).variables, load_model(tmp_path / "linear/seed_0").variables
    for module in ("stem", "block_0"):
        for group in ("params", "batch_stats"):
            jax.tree.map(np.testing.assert_array_equal, after[group][module], before[group][module])
    old, new = (v["params"]["classifier"]["kernel"] for v in (before, after))
    assert (old != new).any()


@pytest.mark.nightly
@pytest.mark.slow
def test_a_teacher_teaches(trained, tmp_path):
    """A student that only listens to its teacher comes to agree with it, whatever the labels."""
    config = one(teacher={"model": trained, "weight": 1.0}, parallel={"devices": 1})
    run = make_run(config, 1)
    state = run.fresh(run.keys((0,)))
    resident = jax.device_put(run.train.resident(), run.plan.everywhere)
    losses = []
    for rows in itertools.islice(run.rows((0,), 0), 4):
        state, metrics = run.step(state, resident, rows, run.keys((0,)))
        losses.append(metrics["sums"]["loss"])
    assert np.isfinite(losses).all() and int(state.skipped) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"dialect": "torchvision"}}, "set model.dialect to the teacher's"),
        ({"data": {"name": "folder", "resolution": 16}}, "knows 10 classes and the data has 2"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(trained, tmp_path, changes, message):
    config = one(teacher={"model": trained}, **changes)
    if "data" in changes:
        config.data.root = write_folder(tmp_path)
    with pytest.raises(UsageError, match=message) as error:
        make_run(config, 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "clasify"}, "unknown task 'clasify': did you mean 'classify'"),
        ({"data": {"name": "digit"}}, "unknown data set 'digit': did you mean 'digits'"),
        ({"data": {"train_split": "trian"}}, "unknown split 'trian'"),
        ({"data": {"root": "/nowhere"}}, "takes no root"),
        ({"data": {"train": {"crop": "inceptoin"}}}, "unknown training crop 'inceptoin'"),
        ({"data": {"train": {"policy": "auto"}}}, "unknown augmentation policy 'auto'"),
        (
            {"data": {"train": {"flip": 2.0}}},
            "data.train.flip is 2.0: it must be between 0 and 1",
        ),
        ({"data": {"train": {"pad": -1}}}, "data.train.pad is -1"),
        ({"data": {"train": {"area": (0.5, 0.2)}}}, "must be two numbers that rise"),
        ({"data": {"train": {"area": (0.5,)}}}, "data.train.area"),
        ({"data": {"eval": {"crop": "centre"}}}, "unknown evaluation crop 'centre': did you mean"),
        ({"data": {"eval": {"fraction": 0.0}}}, "fraction is 0.0"),
        ({"data": {"resolution": 0}}, "data.resolution is 0: it must be between 1"),
        ({"data": {"resolution": 10**9}}, "data.resolution is 1000000000"),
        ({"model": {"spec": "tiny"}}, "unknown model.spec 'tiny'"),
        ({"model": {"dialect": "keras3"}}, "unknown model.dialect 'keras3': did you mean 'keras'"),
        ({"model": {"width": 0.0}}, "width is 0.0"),
        ({"model": {"width": 1e30}}, "model.width is 1e"),
        ({"model": {"expansion": 0}}, "expansion is 0"),
        ({"model": {"output_stride": 3}}, "output_stride is 3"),
        ({"model": {"dropout": 1.5}}, "model.dropout is 1.5: it must be between 0 and 1"),
        (
            {"model": {"stochastic_depth": 1.0}},
            "depth is 1.0: it must be a number of at least 0 and",
        ),
        (
            {"model": {"stochastic_depth": 0.1, "shortcut": "none"}},
            "other than between_bottlenecks",
        ),
        ({"model": {"dtype": "float8"}}, "unknown model.dtype 'float8'"),
        ({"optimizer": {"name": "lamb"}}, "unknown optimizer.name 'lamb'"),
        ({"optimizer": {"schedule": "cosin"}}, "unknown optimizer.schedule 'cosin'"),
        ({"optimizer": {"learning_rate": -1.0}}, "learning_rate is -1.0: it must be between 0"),
        ({"optimizer": {"learning_rate": float("nan")}}, "learning_rate is nan"),
        ({"optimizer": {"learning_rate": float("inf")}}, "learning_rate is inf"),
        ({"optimizer": {"warmup_epochs": float("inf")}}, "warmup_epochs is inf"),
        ({"optimizer": {"warmup_epochs": 1e5}}, "shorten it, or train for longer"),
        ({"optimizer": {"decay_epochs": float("nan")}}, "decay_epochs is nan"),
        ({"optimizer": {"beta1": -0.1}}, "beta1 is -0.1"),
        ({"optimizer": {"clip_norm": -1.0}}, "clip_norm is -1.0"),
        ({"parallel": {"launcher": "pjit"}}, "unknown parallel.launcher 'pjit'"),
        ({"parallel": {"batch_norm": "local"}}, "unknown parallel.batch_norm 'local'"),
        ({"parallel": {"devices": 9}}, "parallel.devices is 9, but 8 CPU"),
        ({"parallel": {"devices": -1}}, "parallel.devices is -1"),
        ({"parallel": {"devices": 3}}, "does not divide over 3 device"),
        ({"parallel": {"accumulate": 3, "devices": 1}}, "1 device(s) × 3 parts: try 15"),
        ({"parallel": {"accumulate": 0}}, "parallel.accumulate is 0"),
        ({"parallel": {"steps_per_call": -1}}, "parallel.steps_per_call is -1"),
        ({"parallel": {"steps_per_call": 9, "launcher": "pmap"}}, "steps_per_call is 9, which"),
        ({"parallel": {"steps_per_call": 9}, "data": {"on_device": False}}, "set it to 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -16}, "batch_size is -16"),
        ({"batch_size": 10**12}, "batch_size is 1000000000000"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": 0}, "epochs and steps are both 0"),
        ({"steps": 2**31}, "steps is 2147483648"),
        ({"epochs": float("inf")}, "epochs is inf"),
        ({"epochs": 1e300}, "epochs is 1e"),
        ({"ema_decay": 2.0}, "ema_decay is 2.0"),
        ({"log_every": 0}, "log_every is 0"),
        ({"eval_every_epochs": float("inf")}, "eval_every_epochs is inf"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0"),
        ({"loss": {"label_smoothing": 1.5}}, "label_smoothing is 1.5"),
        ({"loss": {"mixup": -1.0}}, "loss.mixup is -1.0"),
        ({"teacher": {"temperature": 0.0}}, "teacher.temperature is 0.0"),
        ({"teacher": {"model": "/nowhere"}}, "'/nowhere' is no saved model"),
        ({"init": {"model": "/nowhere"}}, "'/nowhere' is no saved model"),
        ({"init": {"frozen": ("blok_",)}}, "unknown module in init.frozen 'blok_': did you mean"),
        ({"init": {"frozen": (1,)}}, "init.frozen is (1,): it must be a tuple, each item a text"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(changes, message):
    with pytest.raises(UsageError) as error:
        make_run(one(**changes), 1)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"on_device": False}}, "set sweep.at_once to 1"),
        ({"parallel": {"launcher": "shard_map"}}, "set sweep.at_once to 1"),
        ({"parallel": {"batch_norm": "device"}}, "set sweep.at_once to 1"),
        ({"parallel": {"accumulate": 3}}, "does not divide over 1 device(s) × 3 parts"),
    ],
)
def test_what_seeds_at_once_cannot_do(changes, message):
    with pytest.raises(UsageError) as error:
        make_run(one(**changes), 2)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_truncated_and_empty_files(tmp_path):
    write_mnist(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UsageError, match="cannot be read"):
        make_run(one(data={"name": "fashion_mnist", "root": str(tmp_path)}), 1)
    (tmp_path / "empty/train").mkdir(parents=True)
    with pytest.raises(UsageError, match="no class folders"):
        make_run(one(data={"name": "folder", "root": str(tmp_path / "empty")}), 1)


def test_a_set_without_any_example_is_refused(monkeypatch):
    for empty in ("train", "test"):

        def opened(name, split, root, empty=empty):
            return Few(0, True) if split == empty else open_source(name, split, root)

        monkeypatch.setattr(run_module, "open_source", opened)
        with pytest.raises(UsageError, match="has no records"):
            make_run(one(), 1)


@pytest.mark.slow
def test_a_training_step_holds_no_grouped_convolution():
    """XLA's is ten times too slow on CPUs, forward and in both gradients."""
    run = make_run(one(), 1)
    state = jax.eval_shape(run.fresh, run.keys((0,)))
    resident = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), run.train.resident())
    rows = next(run.rows((0,), 0))
    text = run.step.lower(state, resident, rows, run.keys((0,))).as_text()
    groups = [int(n) for n in re.findall(r"_group_count = (\d+)", text)]
    assert "stablehlo.multiply" in text and not [n for n in groups if n > 1]
