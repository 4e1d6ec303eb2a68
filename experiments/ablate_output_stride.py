"""Output stride 16 or 8, with the atrous pyramid or without (Table 7).

    python main.py --config experiments/ablate_output_stride.py

The paper: at stride 16 the pyramid gains 0.4 points for twice the parameters and multiply-adds;
stride 8 it reports with multi-scale inputs only. Presets: `:scenes`, the setting of
`segment_scenes.py` with the paper's head, which has no decoder, and `:voc`, that of
`segment_voc.py`.
"""

from ml_collections import ConfigDict

from experiments import segment_scenes, segment_voc
from mnv2_jax.errors import unknown

PRESETS = {"scenes": segment_scenes.get_config, "voc": segment_voc.get_config}


def get_config(preset: str = "scenes") -> ConfigDict:
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    c = PRESETS[preset]()
    c.name = "ablate_output_stride" + ("" if preset == "scenes" else f"-{preset}")
    c.title = "Output stride and atrous pyramid (Table 7)"
    c.segment.decoder = False
    c.sweep.variants = ConfigDict(
        {
            f"stride_{stride}{'-aspp' if aspp else ''}": {
                "model": {"output_stride": stride},
                "segment": {"aspp": aspp},
            }
            for stride in (16, 8)
            for aspp in (False, True)
        }
    )
    c.sweep.reference = "stride_16"
    return c
