"""Output stride 16 or 8, with the atrous pyramid or without (Table 7).

    python main.py --config experiments/ablate_output_stride.py

The paper: at stride 16 the pyramid gains 0.4 points for twice the parameters and multiply-adds;
stride 8 it reports with multi-scale inputs only. Presets: `:scenes`, the setting of
`segment_scenes.py` at half its width and a fraction of its length, for several seeds on few cores,
and `:voc`, that of `segment_voc.py`. Both have the paper's head, without decoder.

The authors' rates are for maps of 33 positions; on the 6 of a scene every tap but the middle one
would fall on padding. `:scenes` has rates of the same share of the map. On it the pyramid's gain at
stride 16 is confirmed, 2.9 points of mean IoU [2.3, 3.7]; stride 8 gains 9 points without a
pyramid, for 1.5 times the multiply-adds (results/ablate_output_stride). All variants are early in
training: `segment_scenes.py` reaches 78 % where these have 49 to 60.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments import segment_scenes, segment_voc
from mnv2_jax.errors import unknown

SCENE_RATES = {16: (1, 2, 3), 8: (2, 4, 6)}


def _scenes() -> ConfigDict:
    c = segment_scenes.get_config()
    c.model.width, c.steps, c.ema_decay = 0.5, 1000, 0.99
    c.segment.decoder = False
    c.sweep.seeds = tuple(range(8))
    return c


PRESETS = {"scenes": (_scenes, SCENE_RATES), "voc": (segment_voc.get_config, {16: (), 8: ()})}


def get_config(preset: str = "scenes") -> ConfigDict:
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    base, rates = PRESETS[preset]
    c = base()
    c.name = "ablate_output_stride" + ("" if preset == "scenes" else f"-{preset}")
    c.title = "Output stride and atrous pyramid (Table 7)"
    variants: dict[str, Any] = {}
    for stride in (16, 8):
        model = {"output_stride": stride}
        variants[f"stride_{stride}"] = {"model": model}
        variants[f"stride_{stride}-aspp"] = {
            "model": model,
            "segment": {"aspp": True, "rates": rates[stride]},
        }
    c.sweep.variants = ConfigDict(variants)
    c.sweep.reference, c.sweep.claim = "stride_16", ("stride_16-aspp", "stride_16")
    return c
