"""The logits that Hugging Face published for the authors' weights, where the files are at hand.

`MNV2_WEIGHTS` names a folder with COCO's image `000000039769.jpg` and, for each model, a folder
such as `mobilenet_v2_1.0_224` with its `model.safetensors` or `pytorch_model.bin`.
"""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mnv2_jax import normalize
from mnv2_jax.lab.data.image import central
from mnv2_jax.weights import load_weights

GOLDEN = {  # logits 0 to 2, from the script that converted the checkpoints
    "mobilenet_v2_1.4_224": (0.0181, -1.0015, 0.4688),
    "mobilenet_v2_1.0_224": (0.2445, -1.1993, 0.1905),
    "mobilenet_v2_0.75_160": (0.2482, 0.4136, 0.6669),
    "mobilenet_v2_0.35_96": (0.1451, -0.4624, 0.7192),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", GOLDEN)
def test_published_logits(name):
    folder = Path(os.environ.get("MNV2_WEIGHTS", "weights"))
    files = [folder / name / file for file in ("model.safetensors", "pytorch_model.bin")]
    path = next((file for file in files if file.is_file()), None)
    picture = folder / "000000039769.jpg"
    if path is None or not picture.is_file():
        pytest.skip(f"{name} or {picture.name} is not in MNV2_WEIGHTS")
    loaded = load_weights(f"hf:{path}")
    size, resize = loaded.preprocessing.size, loaded.preprocessing.resize
    with Image.open(picture) as image:
        scale = resize / min(image.size)
        image = image.resize([int(scale * side) for side in image.size], Image.Resampling.BILINEAR)
    pixels = central(np.asarray(image.convert("RGB")), size, size)
    images = normalize(pixels[None], loaded.dialect)
    logits = jax.jit(loaded.model.apply)(loaded.variables, images)
    assert loaded.classes == 1001 and loaded.model.class_offset == 1
    np.testing.assert_allclose(logits[0, :3], GOLDEN[name], atol=1e-3)
