"""ImageNet with the best plain recipe published for MobileNetV2, 72.8 % top-1.

    python main.py --config experiments/imagenet_modern.py --config.data.root=...

250 epochs of SGD at batch 1024, learning rate 0.4 with cosine decay after 5 epochs of warm-up, and
no weight decay on batch norm and biases. Heavy regularisation hardly pays on a network of 3.5
million parameters. Not run here: it takes days on eight accelerators.
"""

from ml_collections import ConfigDict

from experiments.imagenet import base, per


def get_config() -> ConfigDict:
    c = base()
    c.name, c.title = "imagenet_modern", "Plain modern recipe"
    c.model.dialect = "torchvision"
    c.batch_size, c.epochs = 1024, 250.0
    c.optimizer.name, c.optimizer.schedule = "sgd", "cosine"
    c.optimizer.learning_rate, c.optimizer.warmup_epochs = 0.4 * per(1024, c), 5.0
    c.optimizer.decay_depthwise = True
    c.data.eval_split = "val"
    c.data.train.color = 0.4
    c.data.eval.crop = "center"
    return c
