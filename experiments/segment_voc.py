"""Mobile DeepLabv3 on Pascal VOC 2012 as the authors configured it (Sec. 6.3, Table 7).

    python main.py --config experiments/segment_voc.py --config.data.root=/path/to/VOC2012 \
        --config.init.model=runs/imagenet/default/seed_0

The root holds `JPEGImages`, `ImageSets/Segmentation` and `SegmentationClassAug`, the 10,582 maps of
the augmented training set that the paper uses; `--config.data.train_split=train` takes VOC's own.
Momentum from a rate of 0.007 with polynomial decay, crops of 513, scales of 0.5 to 2.

Expected: 75.32 mean IoU on the validation set at output stride 16 without pyramid (Table 7), from
a backbone that has seen COCO. Not run here: it takes hours on an accelerator.
"""

from ml_collections import ConfigDict

from mnv2_jax.lab.train.defaults import base, per


def get_config() -> ConfigDict:
    c = base()
    c.name, c.title, c.task = "segment_voc", "Mobile DeepLabv3 on VOC 2012 (Table 7)", "segment"
    c.data.name, c.data.resolution = "voc_segmentation", 513
    c.data.train_split, c.data.eval_split = "trainaug", "val"
    c.data.train.crop, c.data.eval.crop = "scale", "pad"
    c.model.output_stride, c.model.dropout = 16, 0.1
    c.batch_size, c.eval_batch_size, c.steps = 16, 16, 30_000
    c.optimizer.name, c.optimizer.schedule = "sgd", "poly"
    c.optimizer.learning_rate = 0.007 * per(16, c)
    c.eval_every_epochs = 5.0
    return c
