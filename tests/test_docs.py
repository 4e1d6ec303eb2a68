"""README and docs/: every Python block runs, every command is one that the command line takes."""

import functools
import re
import shlex
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnv2_jax import MobileNetV2, export_weights, nnx
from mnv2_jax.lab import cli
from mnv2_jax.lab.data.video import video_writer
from mnv2_jax.lab.model_folder import save_model
from mnv2_jax.lab.tasks import TASKS
from mnv2_jax.lab.train.config import load_config
from mnv2_jax.models.build import PARTS, build
from mnv2_jax.models.spec import SPECS, Row, Spec
from mnv2_jax.version import __version__
from mnv2_jax.weights import PUBLISHED
from tests.lab.train.setting import SPEC

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# The blocks of Table 2 without their repetitions.
ROWS = ((1, 16, 1, 1), (6, 24, 1, 2), (6, 32, 1, 2), (6, 96, 1, 2), (6, 320, 1, 2))
FEW = Spec(stem=32, stem_stride=2, rows=tuple(Row(*row) for row in ROWS), last=1280, divisor=8)
# Commands of the system, of which only the name is checked.
FOREIGN = {
    "apt-get", "cd", "chmod", "export", "gcloud", "git", "mkdir", "model_signing", "mpirun",
    "nvidia-smi", "openssl", "source", "srun", "tail", "tensorboard", "wget", ".", ".ci/run",
    "pytest", "pre-commit",
}  # fmt: skip


def blocks(page, *languages):
    """The fenced blocks of a page."""
    found = FENCE.findall(page.read_text("utf-8"))
    return [text for language, text in found if language in languages]


def commands(text):
    """The commands in a block: continued lines joined, comments taken off, `a && b` as two."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            cut = words.index("&&")
            found.append(words[:cut])
            words = words[cut + 1 :]
        found.append(words)
    return [words for words in found if words]


def is_command(words):
    """Whether a line is meant for a shell; a block without a language may hold anything."""
    return words[0] in {"python", "mnv2", "make", "pip"} | FOREIGN


def shell_of(page):
    """All commands of a page."""
    found = [words for text in blocks(page, "", "sh") for words in commands(text)]
    return [words for words in found if is_command(words)]


def title(value):
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else None


def test_the_pages_are_found():
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert {"README.md", "docs/how-to/flax.md", "docs/how-to/weights.md"} <= names
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 15
    assert sum(len(shell_of(page)) for page in PAGES) >= 40


def test_every_fence_says_what_it_is():
    """A block of Python or shell in another language's name would not be checked."""
    for page in (ROOT / "docs").rglob("*.md"):
        for language, text in FENCE.findall(page.read_text("utf-8")):
            assert language in ("python", "sh", "text", ""), (page, language)
            if language == "sh":
                assert all(is_command(words) for words in commands(text)), (page, text)


@pytest.mark.parametrize("page", [page for page in PAGES if shell_of(page)], ids=title)
def test_commands_are_ones_that_exist(page):
    for words in shell_of(page):
        check(words, page)


def check(words, page):
    """Checks one command: its verb, flags, configuration, overrides, target, module or extra."""
    program, *rest = words
    where = f"{page.name}: {shlex.join(words)}"
    if program == "srun":
        program, rest = "python", rest[rest.index("main.py") :]
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        named = [word for word in rest if "=" not in word]
        assert not set(named) - set(targets), where
    elif program == "pip":
        for extras in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            known = {*project["optional-dependencies"], "k8s"}  # jax[k8s]
            assert set(extras.split(",")) <= known, where
    elif program == "mnv2" or rest[:1] == ["main.py"]:
        parse([word for word in rest if word != "main.py"], where)
    elif program == "python" and rest[0] == "-m":
        assert find_spec(rest[1]) is not None, where
    elif program == "python" and rest[0] not in ("-c",):
        assert (ROOT / rest[0]).is_file(), where


def parse(words, where):
    """Parses a command of ours; a configuration is loaded and its overrides are set."""
    words = [word for word in words if not word.startswith("[")]  # README's [--option]s
    if "FILE[:PRESET]" in words or "--help" in words:
        return
    rest, overrides = cli.split_overrides(words)
    if rest and rest[0].startswith("--config"):
        rest.insert(0, "train")
    numbers = {"N": "2", "I": "0"}  # what a page leaves to the reader
    arguments = cli.make_parser().parse_args([numbers.get(word, word) for word in rest])
    if arguments.run is cli.TRAIN.run and (ROOT / arguments.config.partition(":")[0]).is_file():
        load_config(str(ROOT / arguments.config), overrides)
    else:
        assert arguments.run is not cli.TRAIN.run, f"{where}: there is no such experiment"


def test_a_wrong_command_is_found():
    for line in (
        "make tset",
        "pip install -e '.[cuda11]'",
        "python main.py acount",
        "python main.py account --widht 1",
        "python main.py --config experiments/nothing.py",
        "python main.py --config experiments/imagenet.py:big",
        "python main.py --config experiments/imagenet.py --config.modle.width=1",
        "python -m benchmarks.nothing",
        "python nothing.py",
    ):
        with pytest.raises((AssertionError, ValueError)):
            check(shlex.split(line), ROOT / "README.md")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the files that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    rng = np.random.default_rng(0)
    for name in ("image.png", "my_images/val/cat/9.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    with video_writer(tmp_path / "clip.mp4", 25) as draw:
        draw(rng.integers(0, 256, (40, 50, 3), np.uint8))
    for task, name in (("classify", "mine"), ("detect", "detect_scenes")):
        options = {"num_classes": 2, "width": 0.1, "spec": "small_96"}
        description = {
            "task": task, "model": options, "classes": ["cat", "dog"], "resolution": 96,
            "eval": {"crop": "none"},
        }  # fmt: skip
        variables = some(TASKS[task].build(**options), 96)
        save_model(tmp_path / "runs" / name / "default" / "seed_0", variables, description)
    model = build(dialect="torchvision")
    variables = some(model, 32)
    export_weights(model, variables, "torchvision", "mobilenet_v2.safetensors")
    row = PUBLISHED["torchvision"]["v1"]._replace(sha256="", file="mobilenet_v2.safetensors")
    monkeypatch.setitem(PUBLISHED["torchvision"], "v1", row)
    monkeypatch.setenv("MNV2_MIRROR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def some(model, size):
    """Variables without the time that compiling their initialisation takes."""
    import jax

    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key == "kernel":
            return rng.normal(0, 0.1, leaf.shape).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


AT_NIGHT = ("flax.md", "regions.md", "export.md")


@pytest.mark.slow
@pytest.mark.usefixtures("promotion")
@pytest.mark.parametrize(
    "page",
    # Trackers are run beside fakes of them, in tests/lab/train/test_tracker.py.
    # The guide to Flax says what tests/test_foreign_projects.py does in full; those to regions and
    # exports, what the tests of their verbs do.
    [
        pytest.param(page, marks=[pytest.mark.nightly] * (page.name in AT_NIGHT))
        for page in PAGES
        if blocks(page, "python") and page.name != "trackers.md"
    ],
    ids=title,
)
def test_python_runs(page, place, monkeypatch):
    import jax

    names = {"__name__": "page", "Few": functools.partial(MobileNetV2, spec=FEW)}
    # Networks compile long, and these pages are not about their depth.
    few = page.name in ("flax.md", "README.md")
    if few:
        monkeypatch.setitem(SPECS, "tiny_8", SPEC)
        few_nnx = functools.partial(nnx.MobileNetV2, spec=FEW)
        monkeypatch.setattr(nnx, "MobileNetV2", few_nnx)
    with jax.numpy_rank_promotion("allow"):  # as a reader has it; nnx.Linear needs it
        for block in blocks(page, "python"):
            code = block.replace("MobileNetV2(", "Few(") if few else block
            exec(compile(code, str(page), "exec"), names)
    for kind in ("shortcut",):  # names that a page adds
        monkeypatch.delitem(PARTS[kind], "half", raising=False)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 130


@pytest.mark.parametrize(("page", "rows"), [("README.md", 9), ("docs/speed.md", 6)])
def test_numbers_of_the_pages_are_those_of_the_reports(page, rows):
    """Each row that points at a report has its numbers, and names the experiment that made it."""
    lines = (ROOT / page).read_text("utf-8").splitlines()
    claims = [line.split("|") for line in lines if line.startswith("|") and "results/" in line]
    assert len(claims) >= rows
    for *_, ours, command, _ in claims:
        for said, path in re.findall(r"([^|]*?)\]\(([^)]*results/[^)]*)\)", ours):
            report = (ROOT / page).parent.joinpath(path).read_text("utf-8")
            numbers = re.findall(r"[+-]?\d+\.\d+", said)
            assert all(number in report for number in numbers), ours
            experiment = re.search(r"(?:experiments/|benchmarks\.)\w+", command)
            assert experiment is None or experiment[0] in report, command


def test_the_change_log_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## \[([\w.]+)\]", text, re.MULTILINE)
    assert versions[0] == "Unreleased" or versions[0] == __version__
    assert __version__ in versions
