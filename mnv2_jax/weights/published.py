"""Published weights by name: the table of them, and their download into a cache.

What publishers state was looked up in November 2026: torchvision/models/mobilenetv2.py; timm's
results/results-imagenet.csv and the pages of its repositories on huggingface.co, which show the
sha256 of large files; slim's nets/mobilenet/README.md, deeplab's g3doc/model_zoo.md and
object_detection's g3doc/tf1_detection_zoo.md; keras/applications/mobilenet_v2.py; mmpretrain's and
mmsegmentation's configs/mobilenet_v2/README.md; PaddleClas' ppcls/arch/backbone/model_zoo and
docs/en/algorithm_introduction/ImageNet_models_en.md; the files of google-coral/test_data; and the
README of d-li14/mobilenetv2.pytorch, whose names of files end in the start of their sha256, as
torchvision's do. tonylins publishes by a drive that only a browser opens, so its file is given by
its path.
"""

import hashlib
import os
import re
import shutil
import sys
import tempfile
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from mnv2_jax.errors import UsageError, first_line, typed_line
from mnv2_jax.files import cache_folder, replacing, write_file
from mnv2_jax.models.build import look_up
from mnv2_jax.models.classes import imagenet
from mnv2_jax.weights.limits import MAX_BYTES
from mnv2_jax.weights.load import Loaded, load_weights
from mnv2_jax.weights.names import ECOSYSTEMS
from mnv2_jax.weights.readers import READERS, read_tensors
from mnv2_jax.weights.readers.pytorch import import_torch

MIRROR = "MNV2_MIRROR"
"""The environment variable with an address or a folder that has the files under their names."""
TIMEOUT = 30.0  # seconds without a byte until a server is given up
PACKED = re.compile(r"\.(tgz|tar\.gz)$")


class Published(NamedTuple):
    """A file that somebody published."""

    url: str
    sha256: str  # or its start; empty where the publisher states none
    # in percent: top-1 on ImageNet, a segmenter's mean IoU on Pascal VOC, a detector's AP on COCO
    accuracy: float | None
    size: int  # height and width of the images
    width: float
    file: str  # its name in the cache and in a mirror


def _file(
    url: str, sha256: str, accuracy: float | None, size: int = 224, width: float = 1.0
) -> Published:
    return Published(url, sha256, accuracy, size, width, url.rpartition("/")[2])


def _hub(
    repository: str, sha256: str, *numbers: Any, at: str = "main", bin: bool = False
) -> Published:
    """A file of Hugging Face's hub, at a commit where one is known; named after its repository."""
    name = "pytorch_model.bin" if bin else "model.safetensors"
    row = _file(f"https://huggingface.co/{repository}/resolve/{at}/{name}", sha256, *numbers)
    return row._replace(file=repository.rpartition("/")[2] + Path(name).suffix)


# Top-1 by width and resolution, of slim's checkpoints; Keras' files are conversions of them.
GRID = {
    "1.0": {224: 71.8, 192: 70.7, 160: 68.8, 128: 65.3, 96: 60.3},
    "1.4": {224: 75.0},
    "1.3": {224: 74.4},
    "0.75": {224: 69.8, 192: 68.7, 160: 66.4, 128: 63.2, 96: 58.8},
    "0.5": {224: 65.4, 192: 63.9, 160: 61.0, 128: 57.7, 96: 51.2},
    "0.35": {224: 60.3, 192: 58.2, 160: 55.7, 128: 50.8, 96: 45.5},
}


def _grid(url: str) -> dict[str, Published]:
    return {
        f"{width}@{size}": _file(url.format(f"{width}_{size}"), "", top1, size, float(width))
        for width, row in GRID.items()
        for size, top1 in row.items()
    }


_TORCH = "https://download.pytorch.org/models/mobilenet_v2-"
_GOOGLE = "https://storage.googleapis.com/"
_KERAS = (
    "tensorflow/keras-applications/mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels"
)
_D_LI14 = (
    "https://github.com/d-li14/mobilenetv2.pytorch/raw/1733532bd43743442077326e1efc556d7cfd025d/"
    "pretrained/mobilenetv2"
)

_CORAL = "https://github.com/google-coral/test_data/raw/104342d2d3480b3e66203073dac24f4e2dbb4c41/"

PUBLISHED: dict[str, dict[str, Published]] = {
    "torchvision": {
        # Its name states the start; projects that pin the file state the whole.
        "v1": _file(
            f"{_TORCH}b0353104.pth",
            "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889", 71.878,
        ),
        "v2": _file(f"{_TORCH}7ebf99e0.pth", "7ebf99e0", 72.154),
        # v1 as segmentation_models.pytorch 0.4 keeps it, for those without PyTorch
        "v1-safetensors": _hub(
            "smp-hub/mobilenet_v2.imagenet",
            "be3534eab2a7ad16d91fbd299afdf63e12dd2a20062577a1b63d91f9ef6d1510", 71.878,
            at="e67aa804e17f7b404b629127eabbd224c4e0690b",
        ),
    },
    "timm": {
        "mobilenetv2_100": _hub(
            "timm/mobilenetv2_100.ra_in1k",
            "55ea4fb3a96010b933710ebf44fc965b070d5cd054d3f35e44f2d1320b4a714e", 72.910,
            at="f3ff81ba89de0bc46b546568ebeab2edef6b9d49",
        ),
        "mobilenetv2_050": _hub("timm/mobilenetv2_050.lamb_in1k", "", 65.928, 224, 0.5),
        "mobilenetv2_110d": _hub(
            "timm/mobilenetv2_110d.ra_in1k",
            "feaa9d38a81f31493434916f700d1f752ec5bb70d5903fd08d3278ec0ca7cc0b", 75.056,
        ),
        "mobilenetv2_120d": _hub(
            "timm/mobilenetv2_120d.ra_in1k", "", 77.300,
            at="70071fcdf116c3aec6e3c575bb91e8490a95a99a",
        ),
        "mobilenetv2_140": _hub("timm/mobilenetv2_140.ra_in1k", "", 76.528, 224, 1.4),
    },
    "hf": {  # conversions of slim's files, whose pages state no accuracy of their own
        "google/mobilenet_v2_1.0_224": _hub(
            "google/mobilenet_v2_1.0_224",
            "94f61c6902b411e6b730cfe2443c8b2d983a2d50d289c4bd7083e0583ccdfe76", None,
            at="f4a07ccfbe6c27cf60bcb36382f58a0de1cd095f",
        ),
        "google/mobilenet_v2_1.4_224": _hub(
            "google/mobilenet_v2_1.4_224",
            "a5c7f052fbbaf60880d9f9dbc12550e5ddb4375f9b8a96cc1d488103689b6ec6", None, 224, 1.4,
            bin=True,
        ),
        "google/mobilenet_v2_0.75_160": _hub(
            "google/mobilenet_v2_0.75_160",
            "963ae7c2b05f7ead5130bcc8d28e67bb5bafaf44bc51312f94e62c2d9e20cc66", None, 160, 0.75,
            at="358326189ec7ed5f470163c13cd2806049a067b0", bin=True,
        ),
        "google/mobilenet_v2_0.35_96": _hub(
            "google/mobilenet_v2_0.35_96",
            "639728f97c1f86fcba4a0b7e3f6ba415cc3dbb3cbd2c467b029a7ce811ae2334", None, 96, 0.35,
            at="5d96f9d4a2d8dfc954023eeaa456d88c1503ea1f",
        ),
        # of who converted it; the page under "google" has no safetensors
        "Matthijs/deeplabv3_mobilenet_v2_1.0_513": _hub(
            "Matthijs/deeplabv3_mobilenet_v2_1.0_513",
            "a8f33e2203ec2ae85c606a91c8abc220828a35065667aeafd48388405104cef2", None, 513,
            at="bc557030fd6410788ecc7de5d5b3e607eba2d587",
        ),
    },
    "keras": _grid(f"{_GOOGLE}{_KERAS}_{{}}.h5"),
    "slim": {
        **_grid(f"{_GOOGLE}mobilenet_v2/checkpoints/mobilenet_v2_{{}}.tgz"),
        **{
            f"deeplabv3_mnv2_pascal_{split}": _file(
                f"{_GOOGLE}download.tensorflow.org/models/"
                f"deeplabv3_mnv2_pascal_{split}_2018_01_29.tar.gz", "", miou, 513,
            )
            for split, miou in (("train_aug", 75.32), ("trainval", 80.25))  # of val, of test
        },
        # Networks of the same authors in 8 bits, for LiteRT, which Coral's test data has; its pages
        # state no accuracy. The first was trained with rounding (QAT), the second rounded after.
        "1.0@224-qat": _file(
            f"{_CORAL}mobilenet_v2_1.0_224_quant.tflite",
            "7aad0c74c5e3c06e5eb3c827e13304fdd68a83da6087d92ee169c24ff9fd4776", None,
        ),
        "1.0@224-ptq": _file(
            f"{_CORAL}tf2_mobilenet_v2_1.0_224_ptq.tflite",
            "5d3137241276e79c86d14a74fe43581398ae0e815191d3dba45495b810840e8c", None,
        ),
        "ssdlite_mobilenet_v2_coco": _file(
            f"{_GOOGLE}download.tensorflow.org/models/object_detection/"
            "ssdlite_mobilenet_v2_coco_2018_05_09.tar.gz", "", 22.0, 300,
        ),
    },
    "d-li14": {
        name: _file(f"{_D_LI14}{file}-{start}.pth", start, top1, size, width)
        for name, file, start, top1, size, width in (
            ("1.0-long", "", "c5e733a8", 72.834, 224, 1.0),  # 250 epochs in place of 150
            ("1.0", "_1.0", "0c6065bc", 72.192, 224, 1.0),
            ("0.75", "_0.75", "dace9791", 69.952, 224, 0.75),
            ("0.5", "_0.5", "eaa6f9ad", 64.592, 224, 0.5),
            ("0.35", "_0.35", "b2e15951", 60.092, 224, 0.35),
            ("0.25", "_0.25", "b61d2159", 52.352, 224, 0.25),
            ("0.1", "_0.1", "7d1d638a", 34.896, 224, 0.1),  # its channels are multiples of 4
            ("1.0@192", "_192x192", "e423d99e", 71.076, 192, 1.0),
            ("1.0@160", "_160x160", "64dc7fa1", 69.504, 160, 1.0),
            ("1.0@128", "_128x128", "fd66a69d", 66.740, 128, 1.0),
            ("1.0@96", "_96x96", "ff0e83d8", 62.696, 96, 1.0),
        )
    },
    "mmpretrain": {  # its script of publication writes the start of the sha256 into the name
        "mobilenet_v2": _file(
            "https://download.openmmlab.com/mmclassification/v0/mobilenet_v2/"
            "mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth", "3b2dc3af", 71.86,
        ),
    },
    "paddleclas": {
        f"MobileNetV2{name}": _file(
            "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/"
            f"MobileNetV2{name}_pretrained.pdparams", "", top1, 224, width,
        )
        for name, top1, width in (
            ("", 72.15, 1.0),
            ("_ssld", 76.74, 1.0),  # distilled
            ("_x0_25", 53.21, 0.25),
            ("_x0_5", 65.03, 0.5),
            ("_x0_75", 69.83, 0.75),
            ("_x1_5", 74.12, 1.5),
            ("_x2_0", 75.23, 2.0),
        )
    },
    # Segmenters whose backbone is read, so their mean IoU is not what one gets. mmpretrain's script
    # published them.
    "mmseg": {
        f"{head}_{data}": _file(
            "https://download.openmmlab.com/mmsegmentation/v0.5/mobilenet_v2/"
            f"{head}_{setting}_{data}/{head}_{setting}_{data}_20200825_{end}.pth",
            end[-8:], None, 512,
        )
        for head, setting, data, end in (
            ("deeplabv3plus", "m-v2-d8_512x1024_80k", "cityscapes", "124836-d256dd4b"),
            ("deeplabv3", "m-v2-d8_512x1024_80k", "cityscapes", "124836-bef03590"),
            ("pspnet", "m-v2-d8_512x1024_80k", "cityscapes", "124817-19e81d51"),
            ("fcn", "m-v2-d8_512x1024_80k", "cityscapes", "124817-d24c28c1"),
            ("deeplabv3plus", "m-v2-d8_512x512_160k", "ade20k", "223255-465a01d4"),
            ("deeplabv3", "m-v2-d8_512x512_160k", "ade20k", "223255-63986343"),
            ("pspnet", "m-v2-d8_512x512_160k", "ade20k", "214953-f5942f7a"),
            ("fcn", "m-v2-d8_512x512_160k", "ade20k", "214953-c40e1095"),
        )
    },
}  # fmt: skip
"""By ecosystem and name; the ecosystem alone means its first."""


def from_pretrained(name: str, **options: Any) -> Loaded:
    """Loads published weights by name, downloaded the first time into the cache.

    Args:
      name: one of `PUBLISHED`: `"torchvision"`, `"torchvision:v2"`, `"timm:mobilenetv2_120d"`,
        `"keras:0.35@96"` and so on.
      **options: those of `load_weights`, such as `drop_head=True`.

    Raises:
      UsageError: no such name; no network, or a server that has moved the file, stops or sends
        another one; or what `load_weights` raises.
    """
    return with_names(load_weights(fetch(name), **options))


def with_names(loaded: Loaded) -> Loaded:
    """Names the classes of a published classifier that has no names beside it: ImageNet's.

    It is known by the sha256 or the name of its file; the names stay away from others, whose 1,000
    classes may be their own.
    """
    path = Path(loaded.source.partition(":")[2])
    stems = {path.name, path.parent.name}  # a checkpoint of TensorFlow has the name of its folder
    known = any(
        PACKED.sub("", row.file) in stems or (row.sha256 and loaded.sha256.startswith(row.sha256))
        for rows in PUBLISHED.values() for row in rows.values()
    )  # fmt: skip
    names = [name.split(", ")[0] for name in imagenet().values()]
    background = (loaded.classes or 0) - len(names)
    if loaded.task != "classify" or loaded.names or background not in (0, 1) or not known:
        return loaded
    return loaded._replace(names=(*["background"] * background, *names))


def at_hand() -> list[str]:
    """Names those that need no network, being in the cache or in a mirror that is a folder.

    They are classifiers with a stated accuracy, the most accurate first.
    """
    mirror = os.environ.get(MIRROR, "").strip()
    places = [cache_folder() / "weights"]
    places += [Path(mirror).expanduser()] if mirror and "://" not in mirror else []

    def here(row: Published) -> bool:
        names = (row.file, f"{PACKED.sub('', row.file)}/*.index")
        return any(any(place.glob(name)) for place in places for name in names)

    rows = {f"{eco}:{name}": row for eco, own in PUBLISHED.items() for name, row in own.items()}
    found = {n: row.accuracy for n, row in rows.items() if row.size <= 224 and here(row)}
    return sorted((n for n, top1 in found.items() if top1), key=lambda n: -(found[n] or 0))


def find(name: str) -> tuple[str, Published]:
    """Returns the ecosystem and the row of a name; `UsageError` with the choices if it is none."""
    ecosystem, colon, variant = str(name).partition(":")
    rows = look_up("publisher of weights", ecosystem, PUBLISHED)
    return ecosystem, look_up(
        f"weights of {ecosystem}", variant if colon else next(iter(rows)), rows
    )


def resolve(source: str) -> str:
    """Returns what a command line was given, a file or a published name, as a file.

    What names no file that is there and has no ending of one is taken for a name.
    """
    ecosystem, colon, path = source.partition(":")
    if not (colon and ecosystem in ECOSYSTEMS):
        ecosystem, path = "", source
    try:
        find(source)
    except UsageError as error:
        ending = Path(path).suffix.lower()
        if (
            ending in READERS
            or ending.startswith(".data-")
            or (not ecosystem and "/" in path)
            or not path.strip(" ~")
            or any(os.path.lexists(place) for place in (source, path, f"{path}.index"))
        ):
            return source
        raise UsageError(f"there is no file {path!r}, and no published weights: {error}") from None
    return fetch(source)


def fetch(name: str) -> str:
    """Returns published weights as `ecosystem:path`, where `load_weights` finds them.

    A file of the cache with another sha256 than the table's is replaced.
    """
    ecosystem, row = find(name)
    path = cache_folder() / "weights" / row.file
    if path.suffix in (".pth", ".bin"):  # before the download, not after it
        try:
            import_torch()
        except UsageError as error:
            rows = PUBLISHED[ecosystem].items()
            names = [f"{ecosystem}:{k}" for k, v in rows if v.file.endswith(".safetensors")]
            without = f" These need no torch: {', '.join(names)}." if names else ""
            raise UsageError(f"{name!r}: {error}{without}") from error
    try:
        if PACKED.search(row.file):
            folder = path.with_name(PACKED.sub("", row.file))
            if not (found := list(folder.glob("*.index"))):
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=folder.parent) as own:
                    _download(row, Path(own, row.file))
                    found = _unpack(Path(own, row.file), folder)
            path = found[0].with_suffix("")
        elif not path.is_file() or _sha256(path, row) is not None:
            _download(row, path)
            if not row.sha256:  # a page of a network that asks to log in is not to be kept
                try:
                    read_tensors(path)
                except UsageError:
                    path.unlink()
                    raise
    except OSError as error:
        raise UsageError(
            f"{str(path)!r} cannot be kept in the cache ({first_line(error)}): make room, or name "
            "another folder by the environment variable XDG_CACHE_HOME."
        ) from error
    return f"{ecosystem}:{path}"


def _sha256(path: Path, row: Published) -> str | None:
    """Returns the sha256 of a file if it is not what the table says."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return None if digest.startswith(row.sha256) else digest


def _download(row: Published, path: Path) -> None:
    mirror = os.environ.get(MIRROR, "").strip()
    url = f"{mirror.rstrip('/')}/{row.file}" if mirror else row.url
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        if "://" in url:
            _request(url, partial)
        elif not os.path.isfile(file := os.path.expanduser(url)):
            raise UsageError(
                f"{MIRROR} has no file {file!r}: put it there, or unset {MIRROR} to download it "
                f"from {row.url}."
            )
        else:
            shutil.copyfile(file, partial)
        if (digest := _sha256(partial, row)) is not None:
            raise UsageError(
                f"{url} has sha256 {digest} where {row.sha256} was expected: it was damaged on the "
                f"way or is another file by now; try again, or name a copy by {MIRROR}."
            )


def _request(url: str, path: Path) -> None:
    elsewhere = f"download it elsewhere and give its path, or name its folder by {MIRROR}"
    try:
        import pooch
        import requests
    except ImportError as error:
        raise UsageError(
            f"{url} cannot be downloaded without the package pooch: pip install "
            f"'mnv2_jax[weights]', or {elsewhere}."
        ) from error
    shows = sys.stderr.isatty() and find_spec("tqdm") is not None
    answers: list[requests.Response] = []  # which pooch leaves open where it fails
    keep = {"response": lambda response, **_: answers.append(response)}
    try:
        get = pooch.HTTPDownloader(shows, 1 << 16, timeout=TIMEOUT, hooks=keep)
        get(url, str(path), None)
    except requests.RequestException as error:
        code = getattr(error.response, "status_code", None)
        reasons = {
            f"the server answers {code}, as where a file has moved": code is not None,
            f"the server sent nothing for {TIMEOUT:g} seconds": "timed out" in str(error),
            "the connection ended before the file": isinstance(
                error, requests.exceptions.ChunkedEncodingError
            ),
            "there is no connection": isinstance(error, requests.ConnectionError),
        }
        why = next((reason for reason, holds in reasons.items() if holds), typed_line(error))
        raise UsageError(
            f"{url} cannot be downloaded: {why}. Try again, or {elsewhere}."
        ) from error
    finally:
        for answer in answers:
            answer.close()


def _unpack(archive: Path, folder: Path) -> list[Path]:
    """Takes a TensorFlow checkpoint out of an archive; returns its index, which is written last."""
    import tarfile

    try:
        with tarfile.open(archive) as tar:
            members = [
                (member.name.endswith(".index"), Path(member.name).name, member)
                for member in tar
                if member.isfile() and re.search(r"\.(index|data-\d+-of-\d+)$", member.name)
            ]
            indices = [folder / name for is_index, name, _ in members if is_index]
            size = sum(member.size for *_, member in members)
            if len(indices) != 1 or size > MAX_BYTES:
                raise tarfile.TarError(f"it holds {len(indices)} checkpoints in {size:,} bytes")
            for _, name, member in sorted(members, key=lambda entry: entry[:2]):
                content = tar.extractfile(member)
                write_file(folder / name, content.read() if content else b"")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        why = f"the archive cannot be read: {first_line(error)}"
        raise UsageError(f"{archive.name!r} is damaged ({why}): try again.") from error
    return indices
