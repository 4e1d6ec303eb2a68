"""SSDLite on COCO as the authors configured it (Sec. 6.2, Table 6).

    python main.py --config experiments/detect_coco.py --config.data.root=/path/to/coco \
        --config.init.model=runs/imagenet/default/seed_0

The root holds `annotations/instances_{train,val}2017.json`, `train2017` and `val2017`. RMSProp from
a rate of 0.004, SSD's random crop and flips, moving averages of batch norm that decay by 0.9997.
The paper has 22.1 mAP at 320×320 with 4.3 M parameters and 0.8 B multiply-adds; training length and
batch are those of the released configuration. Not run here: it takes days on an accelerator.
"""

from ml_collections import ConfigDict

from mnv2_jax.lab.train.defaults import base, per


def get_config() -> ConfigDict:
    c = base()
    c.name, c.title, c.task = "detect_coco", "SSDLite on COCO (Table 6)", "detect"
    c.data.name, c.data.eval_split, c.data.resolution = "coco", "val", 320
    c.data.train.crop, c.data.train.area, c.data.eval.crop = "ssd", (0.1, 1.0), "none"
    c.batch_size, c.eval_batch_size, c.steps = 24, 64, 200_000
    c.optimizer.learning_rate = 0.004 * per(24, c)
    c.optimizer.decay_rate, c.optimizer.decay_epochs = 0.95, 162.5  # 800,720 steps
    c.eval_every_epochs = 2.0
    return c
