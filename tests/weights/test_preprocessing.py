"""Images are prepared as they were for each set of weights."""

from mnv2_jax.weights import ECOSYSTEMS
from mnv2_jax.weights.preprocessing import RULES, preprocessing_of


def test_preprocessing_of_every_ecosystem():
    assert RULES.keys() == ECOSYSTEMS.keys()
    expected = {
        "slim": ("stretch", 0.875, "bilinear", None),
        "keras": ("none", 1.0, "bilinear", None),
        "torchvision": ("center", 0.875, "bilinear", 256),
        "timm": ("center", 0.875, "bicubic", 256),
        "hf": ("center", 0.875, "bilinear", 256),
        "d-li14": ("center", 0.875, "bilinear", 256),
        "tonylins": ("center", 0.875, "bilinear", 256),
        "mmpretrain": ("center", 0.875, "bilinear", 256),
        "paddleclas": ("center", 0.875, "bilinear", 256),
        "mmseg": ("none", 1.0, "bilinear", None),
    }
    for name, ecosystem in ECOSYSTEMS.items():
        rule = preprocessing_of(name, ecosystem.dialect, "model.npz", "0" * 64)
        assert (rule.crop, rule.fraction, rule.method, rule.resize) == expected[name]
        assert (
            rule.size == (512 if name == "mmseg" else 224) and rule.mean == ecosystem.dialect.mean
        )
    dialect = ECOSYSTEMS["torchvision"].dialect
    second = preprocessing_of("torchvision", dialect, "renamed.pth", "7ebf99e0" + "0" * 56)
    assert second.resize == 232
    small = preprocessing_of("hf", ECOSYSTEMS["hf"].dialect, "mobilenet_v2_0.35_96.bin", "")
    assert (small.size, small.resize) == (96, 128)  # Hugging Face's own conversion adds 32
    small = preprocessing_of("torchvision", dialect, "mobilenetv2_128x128-fd66a69d.pth", "")
    assert (small.size, small.resize) == (128, 146)
