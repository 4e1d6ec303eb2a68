"""ImageNet as MobileNetV4's authors train a network of this size, very long.

    python main.py --config experiments/imagenet_modern.py --config.data.root=...

AdamW with beta1 0.6, RandAugment, dropout, averaged weights, batches of 4,096: the configuration
that they released with their smallest network (imagenet_mobilenetv4_conv_small_tpu.yaml in the
TensorFlow Model Garden; its L2 term of 1e-5 inside the gradient is left out). It trained for 9,600
epochs; timm's repetition of 3,600 lifted MobileNetV1 from 70.6 to 75.4 % top-1 without a teacher or
more data. Images of 256 pixels evaluate better than the 224 of training. It drops no blocks;
their next larger network has a `model.stochastic_depth` of 0.075, and a dropout of 0.2
(imagenet_mobilenetv4_conv_medium_tpu.yaml).

`:plain` is the best plain recipe published for MobileNetV2, 72.8 %: 250 epochs of SGD at batch
1,024, rate 0.4 with cosine decay, no weight decay on batch norm and biases. It suits smaller sets
too. Neither was run here: they take days on eight accelerators.
"""

from ml_collections import ConfigDict

from mnv2_jax.errors import unknown
from mnv2_jax.lab.train.defaults import base, per


def get_config(preset: str = "adamw") -> ConfigDict:
    c = base()
    c.model.dialect = "torchvision"
    c.optimizer.schedule, c.optimizer.warmup_epochs = "cosine", 5.0
    c.optimizer.decay_depthwise = True
    c.data.eval_split = "val"
    c.data.eval.crop = "center"
    if preset == "adamw":
        c.name, c.title = "imagenet_modern", "MobileNetV4's recipe"
        c.batch_size, c.epochs, c.ema_decay = 4096, 3600.0, 0.9999
        c.model.dropout, c.loss.label_smoothing = 0.3, 0.1
        c.optimizer.name, c.optimizer.learning_rate = "adamw", 0.002 * per(4096, c)
        c.optimizer.beta1, c.optimizer.epsilon, c.optimizer.weight_decay = 0.6, 1e-6, 0.01
        c.data.train.policy = "rand_augment_half"
        c.data.eval_resolution = 256
    elif preset == "plain":
        c.name, c.title = "imagenet_modern-plain", "Plain modern recipe"
        c.batch_size, c.epochs = 1024, 250.0
        c.optimizer.name, c.optimizer.learning_rate = "sgd", 0.4 * per(1024, c)
        c.data.train.color = 0.4
    else:
        raise unknown("preset", preset, ["adamw", "plain"])
    return c
