"""SSDLite against SSD: separable or full convolutions in heads and extra maps (Tables 5 and 6).

    python main.py --config experiments/ablate_ssdlite.py

The paper gives what the two cost, 2.1 M against 14.8 M parameters after the backbone, and no
accuracy of SSD heads on MobileNetV2. Presets: `:scenes`, the setting of `detect_scenes.py` at half
its width and a fraction of its length, for several seeds on few cores, and `:coco`, that of
`detect_coco.py`.

Measured with `:scenes` and eight seeds: mean AP 38.5 ± 0.9 % with SSD heads and 29.7 ± 2.1 % with
SSDLite. That SSD's score higher is confirmed, by 8.8 points [7.0, 10.7] (results/ablate_ssdlite).
It is early in training, where the larger heads learn faster; `detect_scenes.py` reaches twice as
much with SSDLite.
"""

from ml_collections import ConfigDict

from experiments import detect_coco, detect_scenes
from mnv2_jax.errors import unknown


def _scenes() -> ConfigDict:
    c = detect_scenes.get_config()
    c.model.width, c.steps, c.ema_decay = 0.5, 700, 0.99
    c.sweep.seeds = tuple(range(8))
    return c


PRESETS = {"scenes": _scenes, "coco": detect_coco.get_config}


def get_config(preset: str = "scenes") -> ConfigDict:
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    c = PRESETS[preset]()
    c.name = "ablate_ssdlite" + ("" if preset == "scenes" else f"-{preset}")
    c.title = "SSDLite or SSD heads (Table 5)"
    c.sweep.variants = ConfigDict(
        {name: {"detect": {"heads": name}} for name in ("ssdlite", "ssd")}
    )
    c.sweep.reference, c.sweep.claim = "ssdlite", ("ssd", "ssdlite")
    return c
