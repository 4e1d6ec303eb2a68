"""Logits equal to the published implementations', each with its own weights loaded from a file."""

import jax
import numpy as np
import pytest

from mnv2_jax.models.dialect import DIALECTS
from mnv2_jax.weights import ECOSYSTEMS, export_weights, load_weights
from tests.weights.parity_table import SIZES, difference, save
from tests.weights.peers import (
    CLASSES,
    SEGMENTERS,
    VARIANTS,
    keras_peer,
    peer,
    segmenter,
    torch_peer,
)

pytestmark = [
    pytest.mark.oracle,
    # Keras, on its way from JAX to numpy
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

SMALL = ((33, 64),)  # an odd and an even side at every stride


def every(variants):
    """Every ecosystem and variant; the first of each in the gate, the others at night."""
    return [
        pytest.param(name, variant, marks=pytest.mark.nightly if i else pytest.mark.slow)
        for name, listed in variants.items()
        for i, variant in enumerate(listed)
    ]


def test_every_ecosystem_has_a_peer():
    assert VARIANTS.keys() == ECOSYSTEMS.keys()


@pytest.mark.parametrize(("ecosystem", "variant"), every(VARIANTS))
def test_logits(tmp_path, ecosystem, variant):
    # every size at every width is in README.md; compiling them takes minutes
    sizes = SIZES if variant in (1.0, "mobilenetv2_110d") else SMALL
    assert difference(peer(ecosystem, variant), ecosystem, tmp_path, sizes) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("ecosystem", ["torchvision", "hf"])
def test_another_dialect_would_be_seen(tmp_path, ecosystem):
    """The tolerance means something: a wrong epsilon or padding is hundreds of times larger."""
    found = peer(ecosystem, 0.35)
    loaded = load_weights(f"{ecosystem}:{save(found, ecosystem, tmp_path)}")
    images = np.random.default_rng(1).uniform(-1, 1, (2, *SMALL[0], 3)).astype(np.float32)
    theirs = found.logits(images)
    other = DIALECTS["slim" if ecosystem == "torchvision" else "torchvision"]
    for dialect in (
        loaded.dialect._replace(bn_epsilon=other.bn_epsilon),
        loaded.dialect._replace(padding=other.padding),
    ):
        ours = jax.jit(loaded.model.clone(dialect=dialect).apply)(loaded.variables, images)
        assert np.abs(ours - theirs).max() > 1e-3 * np.abs(theirs).max()


def test_every_segmenter_has_a_peer():
    assert SEGMENTERS.keys() == {name for name, e in ECOSYSTEMS.items() if e.segmenter is not None}


@pytest.mark.parametrize(("ecosystem", "variant"), every(SEGMENTERS))
def test_logits_of_every_pixel(tmp_path, ecosystem, variant):
    found = segmenter(ecosystem, variant)
    sizes = SIZES if variant == (1.0, 16) else SIZES[2:]
    assert difference(found, ecosystem, tmp_path, sizes, stride=variant[1]) <= 1e-5


@pytest.mark.slow
def test_another_segmenter_would_be_seen(tmp_path):
    """Of another padding, epsilon of the head, or dilation."""
    found = segmenter("hf", (1.0, 16))
    loaded = load_weights(f"hf:{save(found, 'hf', tmp_path)}", output_stride=16)
    images = np.random.default_rng(1).uniform(-1, 1, (1, 96, 96, 3)).astype(np.float32)
    theirs = found.logits(images)
    model, backbone = loaded.model, loaded.backbone
    padded = backbone.dialect._replace(padding="symmetric")
    for other in (
        model.clone(backbone=backbone.clone(dialect=padded)),
        model.clone(backbone=backbone.clone(output_stride=8)),
        model.clone(dialect=model.dialect._replace(bn_epsilon=1e-3)),
    ):
        ours = jax.jit(other.apply)(loaded.variables, images)
        assert np.abs(ours - theirs).max() > 2e-4 * np.abs(theirs).max()


@pytest.mark.slow
def test_transformers_reads_the_exported_segmenter(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    found = segmenter("hf", (0.5, 16))
    loaded = load_weights(f"hf:{save(found, 'hf', tmp_path)}", output_stride=16)
    path = tmp_path / "exported.safetensors"
    export_weights(loaded.model, loaded.variables, "hf", path)
    images = np.random.default_rng(1).uniform(-1, 1, (1, 65, 97, 3)).astype(np.float32)
    before = found.logits(images)
    for tensor in found.native.state_dict().values():
        torch.Tensor.zero_(tensor)
    found.native.load_state_dict(load_file(path), strict=True)
    assert np.array_equal(found.logits(images), before)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".weights.h5", ".h5", ".keras"])
def test_every_file_of_keras_is_read(tmp_path, suffix):
    found = keras_peer(0.35, CLASSES, seed=0)
    path = tmp_path / f"model{suffix}"
    if suffix == ".weights.h5":
        found.native.save_weights(path)
    else:
        found.native.save(path)
    loaded = load_weights(f"keras:{path}")
    assert loaded.model.width == 0.35 and loaded.classes == CLASSES
    params, stats = loaded.variables["params"], loaded.variables["batch_stats"]
    theirs = found.tensors
    assert np.array_equal(params["stem"]["conv"]["kernel"], theirs["Conv1/kernel"])
    assert np.array_equal(
        params["block_7"]["filter"]["conv"]["kernel"],
        theirs["block_7_depthwise/kernel"].transpose(0, 1, 3, 2),
    )
    norm = stats["block_16"]["project"]["norm"]
    assert np.array_equal(norm["var"], theirs["block_16_project_BN/moving_variance"])
    assert np.array_equal(params["classifier"]["bias"], theirs["predictions/bias"])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".weights.h5", ".h5"])
def test_keras_reads_what_is_exported(tmp_path, suffix):
    found = keras_peer(0.35, CLASSES, seed=0)
    loaded = load_weights(f"keras:{save(found, 'keras', tmp_path)}")
    path = tmp_path / f"exported{suffix}"
    export_weights(loaded.model, loaded.variables, "keras", path)
    before = found.native.get_weights()
    found.native.set_weights([np.zeros_like(w) for w in before])
    found.native.load_weights(path)
    after = found.native.get_weights()
    assert len(before) == len(after)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ecosystem", "variant"),
    [
        ("torchvision", 0.5),
        ("timm", "mobilenetv2_110d"),
        ("hf", 1.4),
        ("d-li14", 0.35),
        ("tonylins", 1.0),
        pytest.param("mmpretrain", 1.4, marks=pytest.mark.nightly),
    ],
)
def test_pytorch_reads_what_is_exported(tmp_path, ecosystem, variant):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    found = torch_peer(ecosystem, variant, CLASSES, seed=0)
    loaded = load_weights(f"{ecosystem}:{save(found, ecosystem, tmp_path)}")
    path = tmp_path / "exported.safetensors"
    export_weights(loaded.model, loaded.variables, ecosystem, path)
    state = load_file(path)
    assert state.keys() == found.tensors.keys()
    found.native.load_state_dict(state, strict=True)
    for name, tensor in found.native.state_dict().items():
        assert torch.equal(tensor, torch.from_numpy(found.tensors[name])), name


@pytest.mark.slow
@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_of_pytorch_are_read(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    found = torch_peer("d-li14", 0.35, CLASSES, seed=0)
    state = found.native.state_dict()
    wrapped = {
        "epoch": 12,
        "best_acc1": 71.2,
        "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]},
    }
    expected = load_weights(f"d-li14:{save(found, 'd-li14', tmp_path)}")
    for name, content in (("plain.pth", state), ("wrapped.pt", wrapped)):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
        loaded = load_weights(f"d-li14:{tmp_path / name}")
        assert jax.tree.all(jax.tree.map(np.array_equal, loaded.variables, expected.variables))
    averaged = {"state_dict": {k: v + 1 for k, v in state.items()}, "state_dict_ema": state}
    torch.save(averaged, tmp_path / "ema.bin", _use_new_zipfile_serialization=not legacy)
    for ema, shift in ((True, 0), (False, 1)):
        loaded = load_weights(f"d-li14:{tmp_path / 'ema.bin'}", ema=ema)
        shifted = jax.tree.map(lambda leaf, by=shift: leaf + np.float32(by), expected.variables)
        assert jax.tree.all(jax.tree.map(np.array_equal, loaded.variables, shifted))
