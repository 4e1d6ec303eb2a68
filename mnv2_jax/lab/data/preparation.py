"""Makes sets that TensorFlow Datasets can read: Fashion-MNIST alone, others by its builders."""

import io
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import user_path
from mnv2_jax.lab.data.readers import idx
from mnv2_jax.lab.data.readers.prepared import DEFAULT_ROOT, FORMAT
from mnv2_jax.lab.data.source import Source


def prepare(name: str, root: str | None = None, idx_root: str | None = None) -> Path:
    """Prepares a stock set for `tfds:NAME` in `root` and returns its folder.

    `fashion_mnist` needs no TensorFlow, but its IDX files, by default in Debian's folder.
    """
    import tensorflow_datasets as tfds

    folder = user_path(root or DEFAULT_ROOT)
    try:
        if name == "fashion_mnist":
            builder = _fashion_mnist_builder(folder, idx_root)
        else:
            builder = tfds.builder(name, data_dir=folder, file_format=FORMAT)
            import_module("tensorflow")  # before the download rather than after it
        builder.download_and_prepare()
    except ImportError as error:
        remedy = "pip install 'mnv2_jax[tf]'. fashion_mnist needs none"
        why = f"preparing {name} needs TensorFlow ({first_line(error)}): {remedy}."
        raise UsageError(why) from error
    except tfds.core.DatasetNotFoundError as error:
        known = "see https://www.tensorflow.org/datasets"
        raise UsageError(f"TensorFlow Datasets has no set {name!r}: {known}.") from error
    except OSError as error:
        raise UsageError(f"cannot prepare {name} in {folder}: {first_line(error)}.") from error
    return Path(builder.data_path)


def _fashion_mnist_builder(folder: Path, idx_root: str | None):
    """Makes a builder with the stock one's name and version, from IDX files, without TensorFlow."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    sources = {split: idx.open_fashion_mnist(split, idx_root) for split in ("train", "test")}

    def examples(source: Source) -> Iterator[tuple[int, dict]]:
        for index in range(len(source)):
            record, file = source[index], io.BytesIO()
            Image.fromarray(np.squeeze(record["image"], -1)).save(file, "PNG")
            file.seek(0)  # tfds encodes arrays with TensorFlow, and takes encoded files as they are
            yield index, {"image": file, "label": record["label"]}

    with registered.skip_registration():

        class FashionMnist(tfds.core.GeneratorBasedBuilder):
            """Fashion-MNIST (Xiao et al., 2017)."""

            name = "fashion_mnist"
            VERSION = tfds.core.Version("3.0.1")

            def _info(self):
                image = tfds.features.Image(shape=(28, 28, 1))
                label = tfds.features.ClassLabel(names=idx.FASHION_CLASSES)
                return tfds.core.DatasetInfo(
                    builder=self, description="70,000 images of Zalando's articles; MIT licence.",
                    features=tfds.features.FeaturesDict({"image": image, "label": label}),
                    supervised_keys=("image", "label"),
                    homepage="https://github.com/zalandoresearch/fashion-mnist",
                )  # fmt: skip

            def _split_generators(self, dl_manager):
                return {split: examples(source) for split, source in sources.items()}

            def _generate_examples(self):
                raise NotImplementedError("the splits bring their own generators")

    return FashionMnist(data_dir=folder, file_format=FORMAT)
