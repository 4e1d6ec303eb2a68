"""The backbone of mmsegmentation's segmenters, whose heads are left out."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mnv2_jax import UsageError, export_weights, inspect_weights, load_weights
from mnv2_jax.lab.cli import main
from mnv2_jax.lab.model_folder import load_model
from mnv2_jax.models.build import build, build_deeplab
from mnv2_jax.models.spec import IMAGENET, MMSEG
from mnv2_jax.weights import infer_ecosystem
from tests.weights.networks import network, same
from tests.weights.peers import peer

LEFT_OUT = "auxiliary_head (5), decode_head (6)"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A checkpoint with two heads."""
    path = tmp_path_factory.mktemp("mmseg") / "fcn_m-v2-d8_512x1024.safetensors"
    tensors = {f"state_dict.{k}": v for k, v in peer("mmseg", 0.5).tensors.items()}
    count = {"state_dict.backbone.conv1.bn.num_batches_tracked": np.zeros((), np.int64)}
    save_file(tensors | count, path)
    return path


def test_the_backbone_is_loaded(file):
    source = str(file)
    loaded = load_weights(source)
    assert loaded.source == f"mmseg:{file}" and loaded.classes is None and loaded.task == "classify"
    assert (loaded.model.spec, loaded.model.output_stride) == (MMSEG, 8)
    assert build(**loaded.options) == loaded.model
    assert load_weights(source, output_stride=16).model.output_stride == 16
    assert load_weights(source, output_stride=32, drop_head=True).model.output_stride is None
    findings = {finding.topic: finding for finding in inspect_weights(file)}
    assert findings["architecture"].found == "width 0.5, 17 blocks, output stride 8"
    assert findings["left out"].found == LEFT_OUT
    assert not any(finding.change for finding in findings.values())


def test_it_goes_into_a_segmenter(file):
    loaded = load_weights(f"mmseg:{file}")
    model = build_deeplab(4, width=0.5, dialect="torchvision")
    images = jax.ShapeDtypeStruct((1, 33, 33, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    put = loaded.into(fresh, "backbone", model)
    for kind in ("params", "batch_stats"):
        assert same(put[kind].pop("backbone"), loaded.variables[kind])
        fresh[kind].pop("backbone")
    assert same(put, fresh)
    other = build_deeplab(4, width=0.5, dialect="slim")
    with pytest.raises(UsageError, match=r"of another dialect than .*dialect='torchvision'"):
        loaded.into(shapes, "backbone", other)


def test_mmpretrain_is_told_from_it(tmp_path):
    path = tmp_path / "model.safetensors"
    export_weights(*network("mmpretrain"), "mmpretrain", path)
    names = load_file(path)
    assert infer_ecosystem(names) == "mmpretrain"
    assert infer_ecosystem(names.keys() - {"backbone.conv2.bn.bias"}) == "mmpretrain"
    assert infer_ecosystem([k for k in names if not k.startswith("backbone.conv2.")]) == "mmseg"
    with pytest.raises(UsageError, match="looks like mmpretrain; load it as mmpretrain:"):
        load_weights(f"mmseg:{path}")


def test_what_theirs_cannot_compute_is_not_exported(tmp_path):
    model, variables = network("mmseg")
    path = tmp_path / "model.npz"
    for change, message in (
        ({"num_classes": 3}, "it has a classifier"),
        ({"spec": IMAGENET}, "its rows are not Table 2's; it dilates other blocks"),
        ({"expand": network("paddleclas")[0].expand}, "the maps of its blocks are not mmseg's"),
    ):
        with pytest.raises(UsageError, match=message):
            export_weights(model.clone(**change), variables, "mmseg", path)
    with pytest.raises(UsageError, match=r"paddleclas cannot hold .*blocks are not paddleclas's"):
        export_weights(*network("torchvision"), "paddleclas", path)


@pytest.mark.slow
def test_the_command_line_imports_it(file, tmp_path, capsys):
    assert main(["import", str(file), str(tmp_path / "model")]) == 0
    assert f"left out, with their tensors: {LEFT_OUT}\n" in capsys.readouterr().err
    saved = load_model(tmp_path / "model")
    assert saved.model == load_weights(f"mmseg:{file}").model
    argv = ["export-weights", "--model", str(tmp_path / "model"), "--to", "mmseg"]
    assert main([*argv, str(tmp_path / "again.safetensors")]) == 0
    theirs, again = load_file(file), load_file(tmp_path / "again.safetensors")
    assert {k for k in again if "num_batches" not in k} < {k.partition(".")[2] for k in theirs}
    stem = "backbone.conv1.conv.weight"
    assert np.array_equal(theirs[f"state_dict.{stem}"], again[stem])
