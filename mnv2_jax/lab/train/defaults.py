"""Every key of a configuration, with its default: the base that experiments state differences from.

The defaults are the paper's recipe for ImageNet (Sec. 6.1), see `experiments/imagenet.py`.
"""

from typing import Any

from ml_collections import ConfigDict, FieldReference

from mnv2_jax.lab.train.config import Config, Optional


def per(images: int, config: ConfigDict) -> FieldReference:
    """Returns how many times so many images a batch has, now and when `batch_size` changes."""
    return config.get_ref("batch_size").to_float() / images


def base() -> Any:
    """Returns a new configuration, locked, with a comment on every key in this source."""
    c = Config()
    c.name = "imagenet"  # of the experiment: title of its report, and of its folder under runs/
    c.title = ""  # of the report and its plot; the name, if empty
    c.needs = ()  # keys without a default that are of use, which have to be given
    c.task = "classify"  # or detect, segment

    c.model = Config()  # see mnv2_jax.models.mobilenet.MobileNetV2
    c.model.width = 1.0
    c.model.spec = "imagenet"  # or small_32, tiny_8: strides for small images
    c.model.expansion = Optional(int)  # None keeps Table 2's t = 6
    c.model.output_stride = Optional(int)
    c.model.activation = "relu6"
    c.model.bottleneck = "linear"  # or relu6 (Fig. 6a)
    c.model.shortcut = "between_bottlenecks"  # or between_expansions, none (Fig. 6b)
    c.model.expand = "standard"  # the three maps of a block, or one of your own (PARTS)
    c.model.filter = "standard"
    c.model.project = "standard"
    c.model.dialect = "slim"  # padding, batch-norm constants, input range
    c.model.bn_decay = Optional(float)  # None keeps the dialect's
    c.model.dropout = 0.2
    c.model.stochastic_depth = 0.0  # how often training drops a block, growing to this at the end
    c.model.dtype = "auto"  # bfloat16 on TPUs and new GPUs, float32 on CPUs

    c.data = Config()
    c.data.name = "imagenet2012"  # see mnv2_jax.lab.data.catalog
    c.data.root = Optional(str)  # folder of the data; None for embedded sets
    c.data.train_split = "train"
    c.data.eval_split = "test"
    c.data.resolution = 224
    c.data.eval_resolution = 0  # 0 for that of training; a larger one can pay (FixRes, 1906.06423)
    c.data.on_device = True  # sets that fit in memory live on the device and are augmented there
    c.data.resplit = False  # train and test split anew for each seed, of sets on the device
    c.data.threads = Optional(int)  # that read and decode; None: one a core
    c.data.bad_record_budget = 0.01  # share of undecodable images that stops a run
    c.data.train = Config()  # see mnv2_jax.lab.data.transforms.train_transform
    c.data.train.crop = "inception"  # or pad, none; detect: ssd, none; segment: scale, none
    c.data.train.pad = 4  # pixels, for crop = pad
    c.data.train.area = (0.08, 1.0)  # for crop = inception or ssd
    c.data.train.flip = 0.5  # probability
    c.data.train.color = 0.0  # strength of brightness, contrast and saturation changes
    c.data.train.policy = "none"  # or rand_augment, rand_augment_half, trivial_augment
    c.data.train.erasing = 0.0  # probability
    c.data.eval = Config()  # see mnv2_jax.lab.data.transforms.eval_transform
    # slim's central 87.5 %, stretched; or center, none; detect: none; segment: pad, none
    c.data.eval.crop = "stretch"
    c.data.eval.fraction = 0.875

    c.batch_size = 96 * 16  # global, over all devices and hosts
    c.eval_batch_size = 1024
    c.epochs = 300.0
    c.steps = 0  # instead of epochs, where above 0
    c.patience = 0  # evaluations without a better one that end a training; 0 is off
    c.time = ""  # that ends a training, such as 10m or 2h, evaluated and with its model

    c.detect = Config()  # for the task detect; see mnv2_jax.models.ssdlite
    c.detect.heads = "ssdlite"  # or ssd, with full convolutions (Table 5)
    c.detect.max_objects = 100  # in an image; of more, the largest

    c.segment = Config()  # for the task segment; see mnv2_jax.models.deeplab
    c.segment.aspp = False  # the atrous pyramid (Table 7)
    c.segment.rates = ()  # of its branches; () for the authors' at this output stride
    c.segment.decoder = False  # with features of the fourth block's expansion, as in DeepLabv3+
    c.segment.atrous = "full"  # or separable: the 3×3 convolutions of pyramid and decoder
    c.segment.channels = 256  # of every layer of the head
    c.segment.scale = (0.5, 2.0)  # for crop = scale

    c.optimizer = Config()
    c.optimizer.name = "rmsprop"  # TensorFlow's; or sgd, adamw, muon
    c.optimizer.learning_rate = 0.045 * per(96, c)  # follows batch_size, unless it is given
    c.optimizer.schedule = "exponential"  # or cosine, poly, constant
    c.optimizer.decay_rate = 0.98  # exponential: factor ...
    c.optimizer.decay_epochs = 1.0  # ... every so many epochs
    c.optimizer.staircase = True
    c.optimizer.power = 0.9  # poly
    c.optimizer.warmup_epochs = 0.0
    c.optimizer.decay = 0.9  # rmsprop: of the mean square
    c.optimizer.momentum = 0.9  # rmsprop, sgd and muon
    c.optimizer.epsilon = 1.0  # inside the root for rmsprop; adamw wants 1e-8
    c.optimizer.nesterov = False  # sgd
    c.optimizer.beta1 = 0.9  # adamw
    c.optimizer.beta2 = 0.999
    c.optimizer.weight_decay = 4e-5  # never on batch norm and biases
    c.optimizer.decay_depthwise = False  # slim leaves depthwise kernels out
    c.optimizer.clip_norm = 0.0  # of the whole gradient; 0 is off

    c.loss = Config()
    c.loss.label_smoothing = 0.0
    c.loss.mixup = 0.0  # Beta parameter; 0 is off
    c.loss.cutmix = 0.0
    c.loss.class_weights = ()  # factors of the loss, one a class by their sorted names; () is off
    c.ema_decay = 0.0  # of averaged parameters and statistics, evaluated beside the raw ones
    c.low_precision = ()  # bfloat16, int8, int8_trained, float32_trained: evaluate in them too

    c.init = Config()  # fine-tuning
    c.init.model = Optional(str)  # a saved model of this project
    c.init.frozen = ()  # top-level modules that are not trained, by (beginnings of) their names
    c.init.frozen_norm = False  # keep the running statistics

    c.teacher = Config()  # distillation
    c.teacher.model = Optional(str)  # a saved model of this project
    c.teacher.weight = 0.5
    c.teacher.temperature = 2.0

    c.parallel = Config()
    c.parallel.launcher = "jit"  # or shard_map, pmap
    c.parallel.batch_norm = "global"  # or device: statistics of each device's rows
    c.parallel.devices = 0  # 0 for all
    c.parallel.accumulate = 1  # parts of a batch, one after the other
    c.parallel.steps_per_call = 0  # up to so many steps in one call, of data on the device

    c.sweep = Config()
    c.sweep.seeds = (0,)
    c.sweep.looks = ()  # numbers of seeds after which a sweep ends if its claim is decided
    c.sweep.variants = ConfigDict({"default": ConfigDict()})  # name -> {key: value}
    c.sweep.reference = "default"  # the variant that the others are compared with
    c.sweep.claim = ()  # variants in the order that is claimed, best first; the report tests it
    c.sweep.delta = 0.01  # smaller differences, as shares of 1, are of no interest: equivalent
    c.sweep.at_once = 1  # seeds trained together as one program; 0 for all

    c.log_every = 100  # steps
    c.eval_every_epochs = 1.0
    c.checkpoint_minutes = 5.0
    c.keep_checkpoints = 2  # latest ones, besides the best
    c.stop_after_skipped = 20  # steps in a row that are not finite
    c.profile = 0  # steps whose trace is written for TensorBoard, once all is compiled
    c.lock()  # a misspelt key is refused, here and in what builds on this
    c.sweep.variants.unlock()
    return c
