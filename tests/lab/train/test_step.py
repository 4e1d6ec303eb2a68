"""One training step: what it learns, what it averages, what it skips, on any devices."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnv2_jax import MobileNetV2
from mnv2_jax.lab.devices.sharding import global_batch, launch, make_plan
from mnv2_jax.lab.tasks.augment import random_shift
from mnv2_jax.lab.tasks.classify import classify
from mnv2_jax.lab.train.step import make_step, new_state
from mnv2_jax.models.spec import Row
from tests.lab.train.setting import SPEC, batch

SHAPE = (6, 6, 1)
SHIFT = random_shift(1)
LAUNCHERS = ("jit", "shard_map", "pmap")


def make_task(plan=None, augmentations=(), **options):
    options = {"num_classes": 3, "spec": SPEC, "in_channels": 1, "dropout": 0.0} | options
    model = MobileNetV2(norm_axis=plan and plan.norm_axis, **options)
    return classify(model, SHAPE, augmentations)


def simple_step(task, optimizer, **options):
    step = jax.jit(make_step(task, optimizer, **options))
    state = jax.jit(
        lambda key: new_state(task.init(key), optimizer, bool(options.get("ema_decay")))
    )
    return step, state(jax.random.key(0))


def numbers(tree):
    return jax.tree.map(np.asarray, tree)


def assert_close(a, b, rtol=1e-6, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.nightly
@pytest.mark.slow
def test_it_learns_32_images_by_heart():
    task = make_task()
    step, state = simple_step(task, optax.sgd(0.2, 0.9))
    rows = batch(32)
    rows["label"] = np.random.default_rng(1).integers(0, 3, 32).astype(np.int32)  # no rule to find
    for _ in range(400):
        state, metrics = step(state, rows, jax.random.key(0))
        hits, count = metrics["sums"]["accuracy"]
        if hits == count:
            break
    assert hits == count == 32


@functools.cache
def compiled(launcher, scope, devices, size, accumulate, augmentations, **options):
    plan = make_plan(launcher, scope, devices, batch_size=size, accumulate=accumulate)
    task, optimizer = make_task(plan, augmentations, **options), optax.sgd(0.1, 0.9)
    step = make_step(task, optimizer, 0.9, accumulate, plan.step_axis, plan.groups)
    return plan, launch(lambda state, resident, rows, key: step(state, rows, key), plan)


@functools.cache
def fresh():
    """The state before the first step, on the host: it is the same on all devices."""
    variables = jax.jit(make_task().init)(jax.random.key(0))
    return numbers(new_state(variables, optax.sgd(0.1, 0.9), True))


def launched(launcher, scope, rows, devices=8, accumulate=1, augmentations=()):
    """State and metrics after a step on some devices."""
    plan, run = compiled(launcher, scope, devices, len(rows["mask"]), accumulate, augmentations)
    state = jax.device_put(fresh(), plan.state)
    return numbers(run(state, {}, global_batch(rows, plan), jax.random.key(5)))


# The same number of rows is masked on every device, at other places.
EVENLY = tuple(4 * device + device % 4 for device in range(8))


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["global", pytest.param("device", marks=pytest.mark.nightly)])
def test_the_launchers_agree(scope):
    """With augmentation and masked rows; in the global scope one device agrees with eight too."""
    rows = batch(32, masked=EVENLY)
    states = [launched(name, scope, rows, augmentations=(SHIFT,)) for name in LAUNCHERS]
    if scope == "global":
        states.append(launched("jit", scope, rows, 1, augmentations=(SHIFT,)))
    for other in states[1:]:
        assert_close(other, states[0])
    assert float(states[0][1]["sums"]["loss"][1]) == 24


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("scope", [pytest.param("global", marks=pytest.mark.nightly), "device"])
def test_the_launchers_agree_on_accumulated_gradients(scope):
    states = [launched(name, scope, batch(32), accumulate=2) for name in LAUNCHERS]
    for other in states[1:]:
        assert_close(other, states[0])


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [*LAUNCHERS, "seeds"],
)
def test_stochastic_depth_draws_on_every_device_and_for_every_seed(launcher):
    """What they lose is what each half of the rows loses alone, and another half draws anew."""
    deep = {"spec": SPEC._replace(rows=(Row(2, 4, 2, 1),)), "stochastic_depth": 0.9}
    rows, keys = batch(32), jax.random.split(jax.random.key(5), 2)
    halves = [{k: v[i : i + 16] for k, v in rows.items()} for i in (0, 16)]
    task, never = make_task(**deep), make_task(**deep | {"stochastic_depth": 0.0})
    variables = jax.jit(task.init)(jax.random.key(0))

    @partial(jax.jit, static_argnums=0)
    def loss(task, rows, key):
        return task.loss(variables, rows, jax.random.fold_in(key, 0))[0]["loss"][0]

    if launcher in LAUNCHERS:
        plan, run = compiled(launcher, "device", 2, 32, 1, (), **deep)
        state = jax.device_put(numbers(new_state(variables, optax.sgd(0.1, 0.9), True)), plan.state)
        found = run(state, {}, global_batch(rows, plan), keys[0])[1]["sums"]["loss"][0]
        expected = sum(loss(task, half, keys[0]) for half in halves)
        same_rows = sum(loss(task, half | {"row": rows["row"][:16]}, keys[0]) for half in halves)
        assert abs(same_rows - expected) > 1e-3
    else:
        step, state = simple_step(task, optax.sgd(0.1))
        found = jax.vmap(step, in_axes=(None, None, 0))(state, rows, keys)[1]["sums"]["loss"][0]
        expected = np.array([loss(task, rows, key) for key in keys])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.all(abs(sum(loss(never, half, keys[0]) for half in halves) - expected) > 1e-3)


@pytest.mark.nightly
@pytest.mark.slow
def test_the_scope_of_batch_norm_and_the_augmentation_matter():
    """So that the agreement above is one of programs that do these things."""
    rows = batch(32, masked=EVENLY)
    ours = launched("jit", "global", rows, augmentations=(SHIFT,))[0].params
    for other in (
        launched("jit", "device", rows, augmentations=(SHIFT,)),
        launched("jit", "global", rows, 1),
    ):
        gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), ours, other[0].params)
        assert max(jax.tree.leaves(gaps)) > 1e-4


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["jit", "pmap"])
def test_device_scope_is_what_each_device_alone_would_see(launcher):
    """Two devices: statistics of each half, running averages averaged, one common gradient."""
    rows = batch(16, masked=(3, 11))
    state, metrics = launched(launcher, "device", rows, devices=2)
    task = make_task()
    variables = jax.jit(task.init)(jax.random.key(0))
    halves = [{k: v[i : i + 8] for k, v in rows.items()} for i in (0, 8)]

    def total(params):
        found = [
            task.loss({**variables, "params": params}, half, jax.random.key(0)) for half in halves
        ]
        stats = jax.tree.map(lambda a, b: (a + b) / 2, found[0][1], found[1][1])
        return sum(sums["loss"][0] for sums, _ in found) / 14, stats

    grads, stats = jax.jit(jax.grad(total, has_aux=True))(variables["params"])
    params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], grads)
    assert_close(state.params, params)
    assert_close(state.batch_stats, stats)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(grads), rtol=1e-5)


@pytest.mark.slow
def test_accumulation_is_a_bigger_batch_where_norms_are_frozen():
    task = make_task(frozen_norm=True)
    rows, key = batch(32, masked=(1, 17, 18, 31)), jax.random.key(0)
    found = []
    for accumulate in (1, 4):
        step, state = simple_step(task, optax.sgd(0.1, 0.9), accumulate=accumulate)
        before = numbers(state.batch_stats)
        for _ in range(2):
            state, metrics = step(state, rows, key)
        found.append(numbers((state, metrics)))
        assert_equal(found[-1][0].batch_stats, before)
    for other in found[1:]:
        assert_close(other, found[0], rtol=1e-5)


def poisoned(rows):
    """The same rows with one pixel that is not finite."""
    bad = dict(rows) | {"image": rows["image"].astype(np.float32)}
    bad["image"][5, 0, 0, 0] = np.nan
    return bad


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_a_batch_that_is_not_finite_changes_nothing_but_the_counters():
    step, state = simple_step(make_task(), optax.adam(0.01), ema_decay=0.9)
    good, bad = batch(16), poisoned(batch(16))
    good["image"] = good["image"].astype(np.float32)
    key = jax.random.key(0)
    state, _ = step(state, good, key)
    before = numbers(state)
    for count in (1, 2):
        state, metrics = step(state, bad, key)
        after = numbers(state)
        for name in ("params", "batch_stats", "opt_state", "ema"):
            assert_equal(getattr(after, name), getattr(before, name))
        assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (
            1 + count, count, count
        )  # fmt: skip
        assert not np.isfinite(metrics["gradient_norm"])
    state, metrics = step(state, good, key)
    assert (int(state.skipped), int(state.skipped_in_a_row)) == (2, 0)
    assert int(metrics["skipped"]) == 2
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (state, before)), strict=True))


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("launcher", ["shard_map", pytest.param("jit", marks=pytest.mark.nightly)])
def test_one_bad_row_on_one_device_skips_the_step_on_all(launcher):
    rows = batch(32)
    rows["image"] = rows["image"].astype(np.float32)
    bad, _ = launched(launcher, "device", poisoned(rows))
    assert_equal(bad.params, fresh().params)
    assert_equal(bad.batch_stats, fresh().batch_stats)
    assert int(bad.skipped) == 1


@pytest.mark.nightly
@pytest.mark.slow
def test_an_update_that_overflows_is_skipped_too():
    """The loss and the gradient are finite; what they would make of the parameters is not."""
    task = make_task()
    step, state = simple_step(task, optax.sgd(1e38))
    before = numbers(state)
    for _ in range(3):
        state, _ = step(state, batch(16), jax.random.key(0))
    assert_equal(numbers(state.params), before.params)
    assert int(state.skipped) == 3


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_one_seed_that_goes_astray_leaves_the_others_alone():
    task, optimizer = make_task(), optax.sgd(0.1)
    step = make_step(task, optimizer)
    keys = jax.random.split(jax.random.key(0), 2)
    start = jax.jit(jax.vmap(lambda key: new_state(task.init(key), optimizer, False)))(keys)
    good = batch(16)
    both = jax.tree.map(lambda a, b: np.stack([a, b]), good, good)
    both["image"] = both["image"].astype(np.float32)
    both["image"][0, 3] = np.nan
    state, _ = jax.jit(jax.vmap(step))(start, both, keys)
    assert np.asarray(state.skipped).tolist() == [1, 0]
    alone, _ = jax.jit(step)(jax.tree.map(lambda v: v[1], start), good, keys[1])
    assert_equal(
        jax.tree.map(lambda v: v[0], state.params), jax.tree.map(lambda v: v[0], start.params)
    )
    assert_close(jax.tree.map(lambda v: v[1], state.params), alone.params, rtol=1e-5)


@pytest.mark.slow
def test_averages_follow_tensorflows_rule_in_numpy():
    """tf.train.ExponentialMovingAverage: decay = min(decay, (1 + step) / (10 + step))."""
    decay = 0.3  # reached at step 3
    step, state = simple_step(make_task(), optax.sgd(0.1), ema_decay=decay)
    average = numbers({"params": state.params, "batch_stats": state.batch_stats})
    assert_equal(numbers(state.ema), average)
    for done in range(6):
        state, _ = step(state, batch(16, seed=done), jax.random.key(0))
        rate = min(decay, (1 + done) / (10 + done))
        now = numbers({"params": state.params, "batch_stats": state.batch_stats})
        average = jax.tree.map(lambda a, n, r=rate: r * a + (1 - r) * n, average, now)
        assert_close(numbers(state.ema), average, rtol=1e-5)


@pytest.mark.nightly
@pytest.mark.slow
def test_without_a_decay_nothing_is_averaged():
    step, state = simple_step(make_task(), optax.sgd(0.1))
    assert step(state, batch(16), jax.random.key(0))[0].ema == {}


@pytest.mark.nightly
@pytest.mark.slow
def test_a_batch_without_any_row_is_no_reason_to_stop():
    """All rows masked, as where a whole batch of files is damaged."""
    step, state = simple_step(make_task(frozen_norm=True), optax.sgd(0.1))
    before = numbers(state)
    state, metrics = step(state, batch(8, masked=range(8)), jax.random.key(0))
    assert_equal(numbers(state.params), before.params)
    assert float(metrics["sums"]["loss"][1]) == 0


@pytest.mark.nightly
@pytest.mark.slow
def test_every_step_draws_anew():
    task = make_task(augmentations=(random_shift(2),))
    step, state = simple_step(task, optax.sgd(0.0))
    rows, losses = batch(16), []
    for _ in range(3):
        state, metrics = step(state, rows, jax.random.key(0))
        losses.append(float(metrics["sums"]["loss"][0]))
    assert len(set(losses)) == 3


@pytest.mark.nightly
@pytest.mark.parametrize("scope", ["global", "device"])
@pytest.mark.parametrize("masked", [(0, 1, 2, 3), (0, 1, 9, 30)])
def test_devices_with_unequal_numbers_of_masked_rows(scope, masked):
    """Also a device that has no row at all."""
    rows = batch(32, masked=masked)
    states = [launched(name, scope, rows, augmentations=(SHIFT,)) for name in LAUNCHERS]
    assert int(states[0][0].skipped) == 0
    for other in states[1:]:
        assert_close(other, states[0])
    if scope == "global":
        assert_close(states[0], launched("jit", "global", rows, 1, augmentations=(SHIFT,)))


@pytest.mark.slow
@pytest.mark.nightly
def test_what_is_compiled_is_compiled_once():
    plan = make_plan("jit", "global", 8, batch_size=32)
    task, optimizer = make_task(plan), optax.sgd(0.1)
    step = make_step(task, optimizer)
    run = launch(lambda state, resident, rows, key: step(state, rows, key), plan)
    fresh = jax.jit(partial(new_state, optimizer=optimizer, ema=False), out_shardings=plan.state)
    state = fresh(jax.jit(task.init)(jax.random.key(0)))
    for seed in range(4):
        rows = global_batch(batch(32, seed=seed), plan)
        state, _ = run(state, {}, rows, jax.random.key(seed))
    assert run._cache_size() == 1
    assert jnp.shape(state.step) == ()
