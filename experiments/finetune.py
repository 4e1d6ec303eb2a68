"""Fine-tuning: starts from a saved model of this project, for classes of your own.

    python main.py --config experiments/finetune.py --config.data.root=/your/images \
        --config.init.model=runs/NAME/VARIANT/seed_0

The images lie in `train/CLASS/` and `val/CLASS/`, or in `CLASS/`, of which a fifth is held out. The
classifier is kept where both sides have the same classes, by name and in one order (by number where
the saved model has no names), and else made anew. `:head` trains the classifier alone on frozen
features and running statistics. Width, spec and dialect are those of the saved model. The model is
of a training here, or of published weights (`mnv2 import`); without one,
`imagenet_modern.py:plain` with `--config.data.name=folder` trains from nothing.
"""

from ml_collections import ConfigDict

from mnv2_jax.errors import unknown
from mnv2_jax.lab.train.defaults import base, per


def get_config(preset: str = "whole") -> ConfigDict:
    c = base()
    c.name, c.title, c.needs = "finetune", "Fine-tuning", ("init.model",)
    c.data.name, c.data.eval_split = "folder", "val"
    c.batch_size, c.eval_batch_size, c.epochs = 64, 256, 20.0
    c.optimizer.name, c.optimizer.schedule = "sgd", "cosine"
    c.optimizer.learning_rate, c.optimizer.warmup_epochs = 0.01 * per(64, c), 1.0
    c.data.train.area = (0.35, 1.0)
    if preset == "head":
        c.name = "finetune-head"
        c.init.frozen, c.init.frozen_norm = ("stem", "block_", "last"), True
    elif preset != "whole":
        raise unknown("preset", preset, ["head", "whole"])
    return c
