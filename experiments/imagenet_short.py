"""ImageNet in 90 epochs, trained at 176 pixels and evaluated at 224.

    python main.py --config experiments/imagenet_short.py --config.data.root=...

What a short training pays for, and no more: SGD as in `imagenet_modern.py:plain`, smaller images
(at 176 pixels a step has 65 % of the multiply-adds of 224; a network sees objects as large in
training as in evaluation at 1.27 times the side, arXiv 1906.06423), crops of a quarter of the image
or more, averaged weights. `mnv2 plan` tells how long it takes on your devices. Not run here.
"""

from ml_collections import ConfigDict

from experiments import imagenet_modern


def get_config() -> ConfigDict:
    c = imagenet_modern.get_config("plain")
    c.name, c.title = "imagenet_short", "ImageNet in 90 epochs"
    c.epochs, c.ema_decay, c.loss.label_smoothing = 90.0, 0.9999, 0.1
    c.data.resolution, c.data.eval_resolution = 176, 224
    c.data.train.area, c.data.train.color = (0.25, 1.0), 0.0
    return c
