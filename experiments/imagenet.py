"""ImageNet classification with the paper's recipe (Sec. 6.1), whose values are the defaults.

    python main.py --config experiments/imagenet.py --config.data.root=/path/to/the/tars

The paper trains with 16 asynchronous workers of 96 images each; here they are one synchronous batch
of 1536, with the learning rate of 0.045 for each worker. Presets: `:paper` (the default) and
`:slim`, the authors' released recipe (8 workers, label smoothing, averaged weights), which reached
72.0 %.

Expected: 72.0 % top-1 at width 1.0 and 224 pixels (Table 4). Not run here: it takes days on eight
accelerators. `mnv2_jax/lab/train/defaults.py` has every key; the files here state what differs.
"""

from ml_collections import ConfigDict

from mnv2_jax.errors import unknown
from mnv2_jax.lab.train.defaults import base


def get_config(preset: str = "paper") -> ConfigDict:
    config = base()
    config.title = "The released recipe" if preset == "slim" else "The paper's recipe"
    config.data.eval_split = "val"
    if preset == "slim":
        config.name = "imagenet-slim"
        config.batch_size = 96 * 8
        config.epochs = 420.0  # about 700,000 steps
        config.optimizer.decay_epochs = 2.5
        config.loss.label_smoothing = 0.1
        config.ema_decay = 0.9999
        config.data.train.color = 0.4
    elif preset != "paper":
        raise unknown("preset", preset, ["paper", "slim"])
    return config
