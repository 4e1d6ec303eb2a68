"""Optimizers against transcriptions in numpy, schedules at named steps, and which kernels decay."""

import math
from functools import partial

import jax
import numpy as np
import optax
import pytest

from mnv2_jax import MobileNetV2, UsageError
from mnv2_jax.lab.train.optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    decay_mask,
    make_optimizer,
    make_schedule,
    tf_rmsprop,
)
from mnv2_jax.models.spec import Row, Spec
from tests.lab.train.setting import settings

SPEC = Spec(stem=4, stem_stride=1, rows=(Row(1, 4, 1, 1), Row(2, 4, 1, 2)), last=8, divisor=2)


def trajectory(optimizer, start, gradients):
    """Parameters after every step."""
    state, params, found = optimizer.init(start), start, []
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        with jax.numpy_dtype_promotion("standard"):  # Optax mixes its count with floats
            updates, state = update(gradient, state, params)
        params = jax.tree.map(np.asarray, optax.apply_updates(params, updates))
        found.append(params)
    return found


def random_gradients(steps=10, size=5, seed=0):
    return list(np.random.default_rng(seed).normal(size=(steps, size)).astype(np.float32))


def rates(step):
    """A learning rate that changes at every step, falling and rising."""
    return 0.1 / (1 + step % 3)


def numpy_tf_rmsprop(start, gradients, decay, momentum, epsilon):
    """ApplyRMSProp of TensorFlow's training_ops: ms starts at 1, the rate enters the momentum."""
    w, ms, mom = start.astype(np.float64), np.ones(start.size), np.zeros(start.size)
    for step, g in enumerate(gradients):
        ms = decay * ms + (1 - decay) * g.astype(np.float64) ** 2
        mom = momentum * mom + rates(step) * g / np.sqrt(ms + epsilon)
        w = w - mom
        yield w


@pytest.mark.slow
@pytest.mark.parametrize(("decay", "momentum", "epsilon"), [(0.9, 0.9, 1.0), (0.8, 0.5, 0.01)])
def test_rmsprop_is_tensorflows(decay, momentum, epsilon):
    start, gradients = np.linspace(-1, 1, 5, dtype=np.float32), random_gradients()
    ours = trajectory(tf_rmsprop(rates, decay, momentum, epsilon), start, gradients)
    expected = list(numpy_tf_rmsprop(start, gradients, decay, momentum, epsilon))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_rmsprop_is_not_what_optax_does_by_default():
    start, gradients = np.ones(5, np.float32), random_gradients()
    ours = trajectory(tf_rmsprop(0.1), start, gradients)
    theirs = trajectory(optax.rmsprop(0.1, momentum=0.9), start, gradients)
    assert np.abs(ours[-1] - theirs[-1]).max() > 0.1


def network():
    model = MobileNetV2(num_classes=3, spec=SPEC)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), "f4"))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: rng.normal(size=s.shape).astype(np.float32), dict(shapes["params"])
    )


def flat(params):
    return {"/".join(k.key for k in path): v for path, v in jax.tree.leaves_with_path(params)}


@pytest.mark.parametrize("depthwise", [True, False])
def test_only_kernels_decay(depthwise):
    marked = {name for name, on in flat(decay_mask(network(), depthwise)).items() if on}
    dense = {
        "stem/conv/kernel", "block_0/project/conv/kernel", "block_1/expand/conv/kernel",
        "block_1/project/conv/kernel", "last/conv/kernel", "classifier/kernel",
    }  # fmt: skip
    filters = {"block_0/filter/conv/kernel", "block_1/filter/conv/kernel"}
    assert marked == (dense | filters if depthwise else dense)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rmsprop", "sgd"])
def test_l2_is_added_to_the_gradient_of_the_recipes_of_the_paper(name):
    params, decay = network(), 0.1
    config = settings(name=name, weight_decay=decay, decay_depthwise=True)
    optimizer = make_optimizer(config, optax.constant_schedule(0.1))
    plain = make_optimizer(settings(name=name, weight_decay=0.0), optax.constant_schedule(0.1))
    zero = jax.tree.map(np.zeros_like, params)
    l2 = jax.tree.map(lambda p, on: decay * p * on, params, decay_mask(params, True))
    with_decay, by_hand = (
        trajectory(o, params, [g])[0] for o, g in ((optimizer, zero), (plain, l2))
    )
    for (path, ours), (_, expected) in zip(
        flat(with_decay).items(), flat(by_hand).items(), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, err_msg=path)
        assert (ours != flat(params)[path]).any() == path.endswith("kernel")


@pytest.mark.parametrize(("beta1", "epsilon"), [(0.9, 1e-8), (0.6, 1e-6)])
def test_adamw_decouples_weight_decay(beta1, epsilon):
    """Loshchilov and Hutter, Algorithm 2, in numpy."""
    config = settings(name="adamw", weight_decay=0.1, epsilon=epsilon, beta1=beta1, beta2=0.99)
    start = {"layer": {"kernel": np.ones((5, 1), np.float32), "bias": np.ones(5, np.float32)}}
    gradients = random_gradients()
    trees = [{"layer": {"kernel": g[:, None], "bias": g}} for g in gradients]
    found = trajectory(make_optimizer(config, rates), start, trees)
    for name, decay in (("kernel", 0.1), ("bias", 0.0)):
        w, m, v = np.ones(5), np.zeros(5), np.zeros(5)
        for t, g in enumerate(gradients):
            m, v = beta1 * m + (1 - beta1) * g, 0.99 * v + 0.01 * g.astype(np.float64) ** 2
            adam = m / (1 - beta1 ** (t + 1)) / (np.sqrt(v / (1 - 0.99 ** (t + 1))) + epsilon)
            w = w - rates(t) * (adam + decay * w)
            np.testing.assert_allclose(found[t]["layer"][name].ravel(), w, rtol=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_momentum(nesterov):
    config = settings(name="sgd", weight_decay=0.0, momentum=0.8, nesterov=nesterov)
    gradients = random_gradients()
    start, trees = {"bias": np.ones(5, np.float32)}, [{"bias": g} for g in gradients]
    found = trajectory(make_optimizer(config, rates), start, trees)
    w, trace = np.ones(5), np.zeros(5)
    for step, g in enumerate(gradients):
        trace = 0.8 * trace + g
        w = w - rates(step) * (g + 0.8 * trace if nesterov else trace)
        np.testing.assert_allclose(found[step]["bias"], w, rtol=1e-5, atol=1e-6)


def numpy_newton_schulz(matrix):
    """Five steps of the quintic with the coefficients that its authors published."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def test_muon_makes_kernels_orthogonal_and_leaves_the_rest_to_adam():
    """Against its authors' loop; they leave the correction of young momenta out, which is one."""
    rng, beta, decay = np.random.default_rng(0), 0.8, 0.1
    shapes = {
        "expand": {"conv": {"kernel": (1, 1, 4, 6)}}, "stem": {"conv": {"kernel": (3, 3, 2, 5)}},
        "filter": {"conv": {"kernel": (3, 3, 1, 6)}}, "classifier": {"kernel": (6, 3)},
        "norm": {"scale": (6,)},
    }  # fmt: skip
    start, *gradients = (
        jax.tree.map(
            lambda s: rng.normal(size=s).astype(np.float32), shapes,
            is_leaf=lambda s: isinstance(s, tuple),
        )
        for _ in range(5)
    )  # fmt: skip
    config = settings(name="muon", momentum=beta, weight_decay=decay)
    found = [flat(tree) for tree in trajectory(make_optimizer(config, rates), start, gradients)]
    adam = optax.nadam(lambda step: 0.06 * rates(step))
    others = [flat(tree) for tree in trajectory(adam, start, gradients)]
    for name, first in flat(start).items():
        w, mean = first.astype(np.float64).reshape(-1, first.shape[-1]), 0.0
        for t, gradient in enumerate(gradients):
            if not name.startswith(("expand", "stem")):
                np.testing.assert_allclose(found[t][name], others[t][name], rtol=1e-5, atol=1e-6)
                continue
            g = flat(gradient)[name].astype(np.float64).reshape(w.shape)
            mean = beta * mean + (1 - beta) * g
            look = beta * mean / (1 - beta ** (t + 2)) + (1 - beta) * g / (1 - beta ** (t + 1))
            wide = numpy_newton_schulz(look.T if len(look) > len(look.T) else look)
            update = 0.2 * max(w.shape) ** 0.5 * (wide if wide.shape == w.shape else wide.T)
            w = w - rates(t) * (update + decay * w)
            np.testing.assert_allclose(found[t][name].reshape(w.shape), w, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_frozen_modules_stay_bit_equal(name):
    params = network()
    config = settings(name=name, weight_decay=0.1, decay_depthwise=True)
    optimizer = make_optimizer(config, optax.constant_schedule(0.1), ("stem", "block_"))
    gradient = jax.tree.map(np.ones_like, params)
    after = flat(trajectory(optimizer, params, [gradient] * 3)[-1])
    for path, before in flat(params).items():
        frozen = path.startswith(("stem/", "block_"))
        assert (after[path] == before).all() if frozen else (after[path] != before).all(), path


def test_the_gradient_is_clipped_by_its_whole_norm():
    config = settings(name="sgd", momentum=0.0, weight_decay=0.0, clip_norm=2.0)
    optimizer = make_optimizer(config, optax.constant_schedule(1.0))
    start = {"a": np.zeros(2, np.float32), "b": np.zeros(1, np.float32)}
    for scale, expected in ((1.0, 2 / 3), (0.1, 0.1)):  # the norm is 3 and 0.3
        gradient = {"a": np.array([1, 2], np.float32) * scale, "b": np.float32([2]) * scale}
        found = trajectory(optimizer, start, [gradient])[0]
        np.testing.assert_allclose(found["a"], -expected * np.array([1, 2]), rtol=1e-6)
        np.testing.assert_allclose(found["b"], [-expected * 2], rtol=1e-6)


def values(config, steps, epoch_steps, at):
    schedule = jax.jit(make_schedule(config, steps, epoch_steps))
    return [float(schedule(step)) for step in at]


def test_the_papers_schedule_falls_by_0_98_every_epoch():
    config = settings(schedule="exponential", learning_rate=0.045)
    at = [0, 99, 100, 101, 199, 200, 1000]
    expected = [0.045 * 0.98 ** (step // 100) for step in at]
    np.testing.assert_allclose(values(config, 5000, 100.0, at), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("epoch_steps", "decay_epochs", "every"), [(22.45, 1.0, 22), (10, 2.5, 25)]
)
def test_exponential_decay_of_fractional_epochs(epoch_steps, decay_epochs, every):
    config = settings(schedule="exponential", decay_epochs=decay_epochs, decay_rate=0.5)
    at = [0, every - 1, every, 2 * every - 1, 2 * every]
    found = values(config, 1000, epoch_steps, at)
    np.testing.assert_allclose(found, [0.1, 0.1, 0.05, 0.05, 0.025], rtol=1e-6)
    smooth = settings(schedule="exponential", decay_epochs=1.0, decay_rate=0.5, staircase=False)
    found = values(smooth, 1000, 20.0, [0, 10, 20, 30])
    np.testing.assert_allclose(found, [0.1 * 0.5 ** (s / 20) for s in (0, 10, 20, 30)], rtol=1e-5)


def test_cosine_after_a_warm_up_of_fractional_epochs():
    config = settings(schedule="cosine", warmup_epochs=0.5)
    ramp, rest = round(0.5 * 22.4), 100 - round(0.5 * 22.4)  # 11 steps, and 89
    at = [0, 1, ramp - 1, ramp, ramp + 1, ramp + rest // 2, 99, 100]
    expected = [
        0.1 * s / ramp if s < ramp else 0.05 * (1 + math.cos(math.pi * (s - ramp) / rest))
        for s in at
    ]
    np.testing.assert_allclose(values(config, 100, 22.4, at), expected, rtol=1e-5, atol=1e-6)


def test_poly_falls_to_zero_with_its_power():
    config = settings(schedule="poly", power=0.9, warmup_epochs=0.0)
    at = [0, 1, 50, 99, 100]
    expected = [0.1 * (1 - step / 100) ** 0.9 for step in at]
    np.testing.assert_allclose(values(config, 100, 10, at), expected, rtol=1e-5, atol=1e-6)


def test_constant():
    config = settings(schedule="constant", warmup_epochs=1.0)
    found = values(config, 100, 10, [0, 5, 10, 99])
    np.testing.assert_allclose(found, [0, 0.05, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_trainings_have_finite_rates(name, steps):
    found = values(settings(schedule=name), steps, 0.3, range(steps + 1))
    assert np.isfinite(found).all() and found[0] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(settings, warmup_epochs=-1.0), "warmup_epochs is -1.0"),
        (partial(settings, warmup_epochs=10.0), "100 of 100 steps: shorten it"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(UsageError, match=message) as error:
        make_optimizer(make(), make_schedule(make(), 100, 10.0))
    assert "\n" not in str(error.value)
