"""The NNX network beside the Linen network: the same variables, results and steps, to the bit."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mnv2_jax
from mnv2_jax import DIALECTS, SPECS, UsageError
from mnv2_jax.models.block import SHORTCUTS
from mnv2_jax.models.layers import linear, relu6
from mnv2_jax.models.spec import Row, Spec
from mnv2_jax.nnx import ConvNorm, InvertedResidual, MobileNetV2, from_linen, to_linen, twin
from mnv2_jax.ops.platform import compiled_for

WIRINGS = [*itertools.product((linear, relu6), SHORTCUTS.values())]
# Two blocks, of which the second has a shortcut at either place.
TWO = Spec(4, 2, (Row(3, 4, 2, 1),), last=8, divisor=2)
FEW = {"num_classes": 3, "spec": TWO, "dropout": 0.0}
TINY = {"num_classes": 10, "spec": SPECS["tiny_8"], "in_channels": 1, "dropout": 0.0}
MASK = np.array([1, 0, 1], np.float32)


def images_for(options):
    """One odd side, so that both paddings of a stride of 2 occur."""
    shape = (3, 9, 8, options.get("in_channels", 3))
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def theirs(linen, variables, images, mask=None):
    """Linen: logits in training, their gradients, and the variables after a step of Optax."""

    def loss(params):
        logits, updated = linen.apply(
            {**variables, "params": params}, images, True, mask, mutable=["batch_stats"]
        )
        return (logits**2).mean(), (logits, updated.get("batch_stats", variables["batch_stats"]))

    grads, (logits, stats) = jax.grad(loss, has_aux=True)(variables["params"])
    optimizer = optax.sgd(0.1, momentum=0.9)
    updates, _ = optimizer.update(grads, optimizer.init(variables["params"]))
    params = optax.apply_updates(variables["params"], updates)
    return logits, grads, {"params": params, "batch_stats": stats}


def ours(model, images, mask=None):
    """NNX: the same by its optimizer, which changes the model in place."""

    def loss(model):
        logits = model(images, mask)
        return (logits**2).mean(), logits

    grads, logits = nnx.grad(loss, has_aux=True)(model)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
    optimizer.update(model, grads)
    return logits, nnx.to_pure_dict(grads), to_linen(model)


def pure(function, model):
    """Returns a function of a model as one of a Linen network's variables."""
    graph, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    kinds = ("params", "batch_stats")
    trees = {kind: jax.tree.structure(s) for kind, s in zip(kinds, states, strict=True)}

    def run(variables, *args):
        leaves = {kind: jax.tree.leaves(variables[kind]) for kind in kinds}
        states = [jax.tree.unflatten(trees[kind], leaves[kind]) for kind in kinds]
        return function(nnx.merge(graph, *states), *args)

    return run


def assert_same(ours, theirs):
    """The same names, dtypes, shapes and bits."""
    jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), ours, theirs)


def assert_same_results(ours, theirs, *args, run=False):
    """Where both are the same program they need not be compiled and `run` to compare their bits."""

    def lower(function):
        return jax.jit(lambda *args: function(*args)).lower(*args)

    programs = [lower(ours), lower(theirs)]
    if run or programs[0].as_text() != programs[1].as_text():
        assert_same(*(program.compile()(*args) for program in programs))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "bottleneck", "shortcut"),
    [
        pytest.param(options, *pair, marks=[pytest.mark.nightly] * (options is TINY or 0 < i < 5))
        for options in (FEW, TINY)
        for i, pair in enumerate(WIRINGS)
    ],
)
def test_a_step_of_every_wiring(randomize, options, bottleneck, shortcut):
    linen = mnv2_jax.MobileNetV2(bottleneck=bottleneck, shortcut=shortcut, **options)
    images = images_for(options)
    variables = randomize(linen, images.shape)
    run = options is TINY or (bottleneck, shortcut) == WIRINGS[0]
    step = pure(ours, twin(linen, variables))
    assert_same_results(step, functools.partial(theirs, linen), variables, images, run=run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bottleneck", "shortcut"),
    [pytest.param(*pair, marks=[pytest.mark.nightly] * bool(i)) for i, pair in enumerate(WIRINGS)],
)
def test_endpoints_of_every_wiring(randomize, bottleneck, shortcut):
    linen = mnv2_jax.MobileNetV2(bottleneck=bottleneck, shortcut=shortcut, **TINY)
    images = images_for(TINY)
    variables = randomize(linen, images.shape)
    model = twin(linen, variables)
    model.eval()
    found = nnx.jit(MobileNetV2.endpoints)(model, images)
    wanted = jax.jit(linen.apply, static_argnames="method")(variables, images, method="endpoints")
    assert list(found) == list(wanted)
    assert_same(found, wanted)
    assert_same(to_linen(model), variables)
    maps = nnx.eval_shape(MobileNetV2.pyramid, model, images)
    wanted = jax.eval_shape(lambda v, x: linen.apply(v, x, method="pyramid"), variables, images)
    assert {k: v.shape for k, v in maps.items()} == {k: v.shape for k, v in wanted.items()}


def five(conv, x, block):
    """A filter with layers of other kinds: 5×5, and a squeeze without batch norm."""
    window = {"kernel": 5, "stride": block.stride, "dilation": block.dilation}
    x = conv(x, x.shape[-1], depthwise=True, name="filter", **window)
    pooled = x.mean(axis=(1, 2), keepdims=True)
    gate = conv(pooled, x.shape[-1], name="gate", norm=False, activation=nn.sigmoid)
    return x * gate if block.train else x + gate


OPTIONS = {
    "own": {"filter": five},
    "symmetric": {"dialect": DIALECTS["torchvision"], "output_stride": 2, "width": 0.75,
                  "spec": TWO._replace(rows=(Row(3, 4, 2, 2), Row(3, 6, 1, 1)), last=None)},
    "headless": {"num_classes": None, "activation": nn.relu},
    "frozen": {"frozen_norm": True},
    "plain": {"convolve": jax.lax.conv_general_dilated},
    "bfloat16": {"dtype": jnp.bfloat16},
}  # fmt: skip
DAY = ("own", "symmetric")


@pytest.mark.slow
@pytest.mark.parametrize(
    "platform", ["cpu", *(pytest.param(p, marks=pytest.mark.nightly) for p in ("cuda", "tpu"))]
)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.nightly] * (n not in DAY)) for n in OPTIONS]
)
def test_a_step_with_every_option_and_a_mask(randomize, name, platform):
    linen = mnv2_jax.MobileNetV2(**FEW | OPTIONS[name])
    images = images_for(FEW)
    variables = randomize(linen, images.shape)
    step = pure(ours, twin(linen, variables))
    with compiled_for(platform):  # chooses the forms; all are compiled for the CPU
        assert_same_results(step, functools.partial(theirs, linen), variables, images, MASK)


@pytest.mark.nightly
@pytest.mark.slow
def test_statistics_over_a_mapped_axis(randomize):
    linen = mnv2_jax.MobileNetV2(**FEW, norm_axis="i")
    images = np.stack([images_for(FEW), -(images_for(FEW) ** 2)])
    variables = randomize(linen.clone(norm_axis=None), images.shape[1:])

    def over(function):
        return jax.vmap(function, in_axes=(None, 0), axis_name="i")

    step = over(pure(ours, twin(linen, variables)))
    assert_same_results(step, over(functools.partial(theirs, linen)), variables, images, run=True)


@pytest.fixture(scope="module")
def fresh():
    return MobileNetV2(**FEW | {"dropout": 0.5}, rngs=nnx.Rngs(0))


@nnx.jit
def call(model, images):
    return model(images)


@pytest.mark.slow
def test_a_fresh_model_trains_and_drops_reproducibly(fresh):
    images = images_for(FEW)
    graph, state = nnx.split(nnx.clone(fresh))
    kernels, start = fresh.last.conv.kernel[...], np.asarray(fresh.stem.norm.mean[...])
    assert 0.04 < kernels.std() < 0.14 and 0.001 < fresh.classifier.kernel[...].std() < 0.02
    first, second = call(fresh, images), call(fresh, images)
    assert not np.array_equal(first, second)  # other features were dropped
    assert not np.array_equal(start, fresh.stem.norm.mean[...])
    assert_same(call(nnx.merge(graph, state), images), first)

    model = nnx.view(fresh, use_running_average=True, deterministic=True)
    before = jax.tree.map(np.asarray, to_linen(model))
    logits = call(model, images)
    assert_same(call(model, images), logits)
    assert_same(to_linen(model), before)
    assert not fresh.dropout.deterministic and not fresh.stem.norm.use_running_average
    linen = mnv2_jax.MobileNetV2(**FEW)
    assert_same(logits, jax.jit(linen.apply)(to_linen(model), images))


@pytest.mark.slow
def test_the_papers_network_has_its_variables():
    model = nnx.eval_shape(lambda: MobileNetV2(rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(to_linen(model)["params"])) == 3_504_872
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    assert to_linen(model) == jax.eval_shape(model.linen.init, jax.random.key(0), images)
    model.eval()
    assert nnx.eval_shape(call, model, images).shape == (1, 1000)


@pytest.mark.slow
def test_published_weights_go_in_and_out(randomize, tmp_path):
    linen = mnv2_jax.build(width=0.1, num_classes=5, dialect="torchvision")
    variables = randomize(linen, (1, 32, 32, 3))
    mnv2_jax.export_weights(linen, variables, "torchvision", tmp_path / "a.safetensors")
    loaded = mnv2_jax.load_weights(f"torchvision:{tmp_path / 'a.safetensors'}")
    model = twin(loaded.model, loaded.variables)
    assert model.linen == loaded.model
    assert nnx.graphdef(model) == nnx.graphdef(twin(*loaded[:2]))  # compiled once for both
    assert_same(to_linen(model), variables)
    mnv2_jax.export_weights(model.linen, to_linen(model), "torchvision", tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


@pytest.fixture
def few(randomize):
    linen = mnv2_jax.MobileNetV2(**FEW)
    return linen, randomize(linen, (1, 8, 8, 3))


def test_variables_are_copied_into_a_model_in_place(few):
    linen, variables = few
    model = twin(linen, jax.tree.map(np.zeros_like, variables))
    norm = model.block_0.filter.norm
    assert from_linen(model, nn.FrozenDict(variables)) is model
    assert_same(norm.var[...], variables["batch_stats"]["block_0"]["filter"]["norm"]["var"])
    variables["params"]["classifier"]["bias"][:] = 7
    assert not (to_linen(model)["params"]["classifier"]["bias"] == 7).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["params"].pop("stem"), r"^3 of the variables do not fit .*'params/stem/conv/"
         r"kernel' is missing and has to be \[3, 3, 3, 4\]; "),
        (lambda v: v.pop("batch_stats"), r"^16 .*'batch_stats/block_0/expand/norm/mean' is missing "
         r"and has to be \[12\].*; …"),
        (lambda v: v["params"].update(extra={"kernel": np.zeros((2, 3))}),
         r"^1 .*'params/extra/kernel' is \[2, 3\] and has to be left out\."),
        (lambda v: v["params"]["classifier"].update(bias=np.zeros(4)),
         r"^1 .*'params/classifier/bias' is \[4\] and has to be \[3\]\."),
    ],
)  # fmt: skip
def test_variables_that_do_not_fit_are_listed_and_nothing_is_set(few, change, message):
    linen, variables = few
    model = twin(linen, variables)
    other = jax.tree.map(np.zeros_like, variables)
    change(other)
    with pytest.raises(UsageError, match=message) as error:
        from_linen(model, other)
    assert "\n" not in str(error.value)
    assert_same(to_linen(model), variables)


def test_what_cannot_be_built_is_refused(few):
    rngs = nnx.Rngs(0)
    with pytest.raises(UsageError, match=r"the network is DeepLabV3.*: give a MobileNetV2"):
        twin(mnv2_jax.DeepLabV3(2, mnv2_jax.MobileNetV2(None)), few[1])
    with pytest.raises(UsageError, match="width is 0"):
        MobileNetV2(width=0, rngs=rngs)
    with pytest.raises(UsageError, match="only the Linen network"):
        InvertedResidual(4, 4, split=2, rngs=rngs)
    with pytest.raises(
        UsageError, match=r"depth is 0\.2: only the Linen network.*give 0, or to twin"
    ):
        twin(few[0].clone(stochastic_depth=0.2), few[1])
    with pytest.raises(UsageError, match=r"= \(8, 8, 4\), and the block's are \(4, 4, 4\)"):
        InvertedResidual(4, 4, stride=2, rngs=rngs, filter=lambda conv, x, block: x)
    with pytest.raises(TypeError, match="heads"):
        MobileNetV2(heads=2, rngs=rngs)


def test_images_of_another_form_are_refused(few, unchecked):
    model = twin(*few)
    with pytest.raises(UsageError, match="images are uint8"):
        model(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(UsageError, match="4 channels where"):
        model(np.zeros((1, 8, 8, 4), np.float32))


def test_layers_and_blocks_stand_alone():
    def shape_of(make):
        x = jax.ShapeDtypeStruct((2, 9, 8, 4), jnp.float32)
        return nnx.eval_shape(lambda x: make(rngs=nnx.Rngs(0))(x), x).shape

    assert shape_of(functools.partial(ConvNorm, 4, 6, kernel=3, stride=2)) == (2, 5, 4, 6)
    assert shape_of(functools.partial(InvertedResidual, 4, 6, stride=2)) == (2, 5, 4, 6)


def test_convolutions_of_nnx_take_the_fast_form():
    layer = nnx.eval_shape(
        lambda: nnx.Conv(4, 4, (3, 3), feature_group_count=4, rngs=nnx.Rngs(0),
                         conv_general_dilated=mnv2_jax.convolution)
    )  # fmt: skip
    graph, state = nnx.split(layer)
    x = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32)
    program = jax.make_jaxpr(lambda state, x: nnx.merge(graph, state)(x))(state, x)
    assert "conv_general_dilated" not in str(program)
