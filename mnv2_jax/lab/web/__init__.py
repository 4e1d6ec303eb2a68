"""A trained classifier as a static web page, where ONNX Runtime runs it in the browser.

Beside `model.onnx`, which takes pixels 0..255, stand a page, a module that cuts and resizes
pictures as `mnv2 predict` does, what both need to know of the model in `model.json`, and the
runtime's own files. The page loads nothing from elsewhere.
"""

import inspect
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from mnv2_jax.errors import UsageError, first_line
from mnv2_jax.files import json_text, read_file, user_path
from mnv2_jax.lab.data import eval_transform
from mnv2_jax.lab.predict import transform_of
from mnv2_jax.lab.tasks import CLASSIFY
from mnv2_jax.lab.tasks.task import TrainedModel

MODEL = "model.onnx"
PACKAGE = "onnxruntime-web@1.30.0"  # on npm; files of the same names are in all since 1.20
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
COMMAND = f"npm pack {PACKAGE} && tar xzf {PACKAGE.replace('@', '-')}.tgz"
MAX_FILE = 1 << 26  # bytes of one of them


def page_files(
    model: TrainedModel,
    size: int,
    runtime: str | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, bytes | str]:
    """Returns the content of all files of a page but `model.onnx`, by name.

    Args:
      model: a classifier.
      size: height and width of the images that its ONNX file takes.
      runtime: the folder `dist` of the npm package onnxruntime-web; without, npm downloads it.
      progress: called with a line before the download.

    Raises:
      UsageError: the model is no classifier, or the runtime cannot be had.
    """
    if model.task is not CLASSIFY:
        raise UsageError(f"this is a {model.task.noun}; --to web needs a classifier.")
    names = [model.class_name(i) for i in range(model.count_classes())]
    transform_of(model, size)  # refuses what the next line cannot bind
    rule = inspect.signature(eval_transform).bind(
        size, **model.description.get("eval", {}), channels=model.backbone.in_channels
    )
    rule.apply_defaults()
    facts = {"classes": names, "background": getattr(model.model, "class_offset", 0)}
    own = Path(__file__).parent
    return {
        **(_given(runtime) if runtime is not None else _downloaded(progress)),
        "model.json": json_text({"rule": rule.arguments, **facts}, indent=1),
        **{name: (own / name).read_text("utf-8") for name in ("classify.mjs", "index.html")},
    }


def _given(runtime: str) -> dict[str, bytes]:
    folder = user_path(runtime, "--runtime")
    missing = [name for name in RUNTIME if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"--runtime {runtime!r} has no {missing[0]}: give the folder package/dist that "
            f"`{COMMAND}` unpacks."
        )
    return {name: read_file(folder / name, MAX_FILE) for name in RUNTIME}


def _downloaded(progress: Callable[[str], None]) -> dict[str, bytes]:
    remedy = f"run `{COMMAND}` where there is npm and a network, and give --runtime package/dist."
    if (npm := shutil.which("npm")) is None:
        raise UsageError(f"the page needs ONNX Runtime, and there is no npm to fetch it: {remedy}")
    progress(f"fetching {PACKAGE} with npm …")
    with tempfile.TemporaryDirectory() as folder:
        words = [npm, "pack", PACKAGE, "--silent"]
        result = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        try:
            (packed,) = Path(folder).glob("*.tgz")
            with tarfile.open(packed) as archive:
                opened = {name: archive.extractfile(f"package/dist/{name}") for name in RUNTIME}
                return {name: file.read() for name, file in opened.items() if file is not None}
        except (ValueError, KeyError, OSError, tarfile.TarError) as error:
            why = result.stderr.strip().partition("\n")[0] or first_line(error)
            raise UsageError(f"npm could not fetch {PACKAGE} ({why}): {remedy}") from error
