"""SSDLite on scenes: seven kinds of garment, found and named (Sec. 6.2 without a download).

    python main.py --config experiments/detect_scenes.py

Scenes of 96×96 pixels are composed of embedded Fashion-MNIST items; those held out show items that
no training scene has.

Measured with one seed on 1,000 held-out scenes: mean AP 84.3 % at IoU 0.5 and 63.6 % over 0.5 to
0.95, in a quarter of an hour on two busy CPU cores (results/detect_scenes). In the pictures boxes
sit on their items; what is wrong is mostly a name.
"""

from ml_collections import ConfigDict

from mnv2_jax.lab.train.defaults import base


def get_config() -> ConfigDict:
    c = base()
    c.name, c.title, c.task = "detect_scenes", "SSDLite on scenes", "detect"
    c.data.name, c.data.resolution = "scenes", 96
    c.data.train.crop, c.data.eval.crop = "none", "none"
    c.detect.max_objects = 2
    c.model.spec, c.model.bn_decay = "small_96", 0.97
    c.batch_size, c.eval_batch_size, c.steps = 16, 100, 3000
    c.optimizer.name, c.optimizer.schedule = "adamw", "cosine"
    c.optimizer.learning_rate, c.optimizer.warmup_epochs = 2.5e-3, 0.1
    c.optimizer.epsilon, c.optimizer.weight_decay = 1e-8, 0.02
    c.optimizer.clip_norm = 10.0
    c.ema_decay = 0.998
    c.log_every, c.eval_every_epochs = 100, 1.0
    return c
