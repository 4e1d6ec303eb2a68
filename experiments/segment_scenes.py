"""Mobile DeepLabv3 on scenes: every pixel named (Sec. 6.3 without a download).

    python main.py --config experiments/segment_scenes.py

Scenes of 96×96 pixels are composed of embedded Fashion-MNIST items; those held out show items that
no training scene has. A decoder and a thin head, for edges and for two cores.

Measured with one seed on 1,000 held-out scenes: mean IoU 78.3 %, 95.1 % of the pixels, in 1,397 s
on two CPU cores that other work shared (results/segment_scenes), and 79.5 % with each scene's
mirror image (`mnv2 evaluate --flip`). The pictures show edges that are right nearly everywhere, and
names that are not, mostly of tops, dresses and sandals. Batches of 8 with more steps gave 75.0 %,
output stride 16 75.6 %.
"""

from ml_collections import ConfigDict

from mnv2_jax.lab.train.defaults import base


def get_config() -> ConfigDict:
    c = base()
    c.name, c.title, c.task = "segment_scenes", "Mobile DeepLabv3 on scenes", "segment"
    c.data.name, c.data.resolution = "scenes", 96
    c.data.train.crop, c.data.eval.crop = "none", "none"
    c.model.spec, c.model.bn_decay = "small_96", 0.97
    c.model.output_stride, c.model.dropout = 8, 0.1
    c.segment.decoder, c.segment.atrous, c.segment.channels = True, "separable", 64
    c.batch_size, c.eval_batch_size, c.steps = 16, 100, 4400
    c.optimizer.name, c.optimizer.schedule = "adamw", "cosine"
    c.optimizer.learning_rate, c.optimizer.warmup_epochs = 2.5e-3, 0.1
    c.optimizer.epsilon, c.optimizer.weight_decay = 1e-8, 0.02
    c.optimizer.clip_norm = 10.0
    c.ema_decay = 0.998
    c.log_every, c.eval_every_epochs = 100, 1.0
    return c
