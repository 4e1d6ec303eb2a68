"""Small projects of other people: this network inside their Linen and NNX models."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mnv2_jax import ConvNorm, InvertedResidual, MobileNetV2, convolution
from mnv2_jax.models.spec import Row, Spec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("promotion")]
SPEC = Spec(stem=8, stem_stride=2, rows=(Row(3, 8, 1, 2),), last=16)


class TwoTowers(nn.Module):
    """Someone's Linen model: our backbone under another name, our block, and a plain nn.Conv."""

    @nn.compact
    def __call__(self, a, b, train: bool):
        tower = MobileNetV2(num_classes=None, spec=SPEC, name="tower")
        features = jnp.concatenate([tower(a, train), tower(b, train)], axis=-1)
        features = InvertedResidual(16, expansion=2, name="mix")(features, train)
        features = ConvNorm(16, kernel=3, name="more")(features, train)
        x = nn.Conv(16, (3, 3), feature_group_count=16, conv_general_dilated=convolution)(features)
        return nn.Dense(1)(x.mean((1, 2)))


def batch():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 8, 16, 16, 3)).astype(np.float32)
    return a, b, (a.mean((1, 2, 3)) > b.mean((1, 2, 3))).astype(np.float32)


def test_inside_a_linen_model_under_every_transform():
    model, (a, b, y) = TwoTowers(), batch()
    variables = jax.jit(model.init, static_argnums=3)(jax.random.key(0), a, b, False)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(variables, opt_state):
        @jax.checkpoint
        def loss(params):
            out, update = model.apply(
                {**variables, "params": params}, a, b, True, mutable=["batch_stats"]
            )
            return optax.sigmoid_binary_cross_entropy(out[:, 0], y).mean(), update

        (value, update), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, **update}, opt_state, value

    opt_state, losses = optimizer.init(variables["params"]), []
    for _ in range(25):
        variables, opt_state, value = step(variables, opt_state)
        losses.append(float(value))
    assert losses[-1] < 0.2 * losses[0]

    one_by_one = jax.vmap(lambda a, b: model.apply(variables, a[None], b[None], False)[0])
    np.testing.assert_allclose(
        jax.jit(one_by_one)(a, b), jax.jit(model.apply, static_argnums=3)(variables, a, b, False),
        rtol=1e-4, atol=1e-5)  # fmt: skip


@pytest.mark.nightly
def test_replicas_train_together_under_vmap():
    model = MobileNetV2(num_classes=2, spec=SPEC, dropout=0.0)
    x = batch()[0]
    keys = jax.random.split(jax.random.key(0), 3)

    def loss(variables):
        out, _ = model.apply(variables, x, train=True, mutable=["batch_stats"])
        return (out**2).mean()

    variables = jax.jit(jax.vmap(lambda key: model.init(key, x)))(keys)
    together = jax.jit(jax.vmap(jax.grad(loss)))(variables)
    second = jax.jit(jax.grad(loss))(jax.tree.map(lambda v: v[1], variables))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-3, atol=1e-7), together, second
    )


class NnxClassifier(nnx.Module):
    """Someone's NNX model around our Linen network."""

    def __init__(self, rngs: nnx.Rngs):
        self.backbone = nnx.bridge.ToNNX(MobileNetV2(num_classes=None, spec=SPEC), rngs=rngs)
        self.backbone.lazy_init(jnp.zeros((1, 16, 16, 3)))
        self.head = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x, train: bool):
        # The bridge keeps what a mutable collection returns in the module itself.
        features = self.backbone(x, train=train, mutable=["batch_stats"] if train else False)
        return self.head(features.mean((1, 2)))


@pytest.mark.nightly
def test_inside_an_nnx_model():
    with jax.numpy_rank_promotion("allow"):  # nnx.Linear relies on it
        model = NnxClassifier(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
        a, b, labels = batch()

        @nnx.jit
        def step(model, optimizer):
            def loss(model):
                logits = model(a - b, train=True)
                y = labels.astype(jnp.int32)
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

            value, grads = nnx.value_and_grad(loss)(model)
            optimizer.update(model, grads)
            return value

        mean = np.array(nnx.state(model, nnx.BatchStat)["backbone"]["stem"]["norm"]["mean"][...])
        losses = [float(step(model, optimizer)) for _ in range(25)]
        after = np.array(nnx.state(model, nnx.BatchStat)["backbone"]["stem"]["norm"]["mean"][...])
        assert losses[-1] < 0.2 * losses[0]
        assert not np.allclose(mean, after)
        assert model(a - b, train=False).shape == (8, 2)
