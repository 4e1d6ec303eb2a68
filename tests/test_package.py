"""The package as others meet it: what an import costs, and what the wheel holds."""

import contextlib
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import mnv2_jax

ROOT = Path(__file__).resolve().parents[1]
GRAFTED = ("benchmarks", "docs", "experiments", "notebooks", "results", "tests")


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Runs a command that must succeed, without `PYTHONPATH`, and returns what it printed."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_importing_every_module_loads_no_heavy_framework():
    """They are imported inside the functions that need them, so `import mnv2_jax` stays light."""
    script = """
import importlib, pkgutil, sys
import mnv2_jax
print(*[name for name in ("flax.nnx", "optax") if name in sys.modules])
names = ["mnv2_jax"]
names += [m.name for m in pkgutil.walk_packages(mnv2_jax.__path__, "mnv2_jax.")]
for name in names:
    importlib.import_module(name)
heavy = "tensorflow torch keras onnx onnxruntime ai_edge_litert tensorflow_datasets"
print(len(names), *[name for name in heavy.split() if name in sys.modules])
"""
    printed = run(sys.executable, "-c", script, cwd=ROOT, JAX_PLATFORMS="cpu")
    early, (count, *loaded) = (line.split() for line in printed.splitlines())
    assert early == loaded == []
    assert int(count) >= len(list((ROOT / "mnv2_jax").glob("*.py")))


def normal(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]*", requirement).group()).lower()


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lines(name: str) -> set[str]:
    text = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return {line for line in text if line}


def test_requirements_are_those_of_the_library_and_of_training():
    extras = project()["optional-dependencies"]
    assert lines("requirements.txt") == {*project()["dependencies"], *extras["train"]}


def test_no_name_of_a_package_hides_a_module():
    hidden = []
    for module in pkgutil.walk_packages(mnv2_jax.__path__, "mnv2_jax."):
        package, _, name = module.name.rpartition(".")
        loaded = importlib.import_module(module.name)
        if getattr(importlib.import_module(package), name) is not loaded:
            hidden.append(module.name)
    assert hidden == []


def test_lock_pins_every_requirement():
    """A dependency added without `make lock` would be missing from the gate."""
    pinned = {normal(line) for line in lines("requirements-lock.txt") if "==" in line}
    extras = project()["optional-dependencies"]
    asked = project()["dependencies"] + extras["dev"]
    for extra in re.search(r"\[(.*)\]", extras["dev"][0])[1].split(","):
        asked += extras[extra]
    assert {normal(line) for line in asked} - {"mnv2-jax"} - pinned == set()


def test_lock_names_no_index_and_no_path():
    lock = (ROOT / "requirements-lock.txt").read_text()
    assert "make lock" in lock.partition("\n\n")[0]
    assert re.findall(r"https?:|file:|--(?:index|extra|find)|@", lock) == []


# What the library is for, from the network to files, and what the command line says without more.
LIBRARY = """
import sys, jax, numpy as np
import mnv2_jax
from mnv2_jax.export import export

model = mnv2_jax.build(width=0.35, num_classes=10, dialect="timm")
images = np.zeros((1, 32, 32, 3), np.float32)
shapes, random = jax.eval_shape(model.init, jax.random.key(0), images), np.random.default_rng(0)
variables = jax.tree.map(lambda v: random.uniform(0.1, 1, v.shape).astype(np.float32), shapes)
cost = mnv2_jax.account(model, images.shape)
assert cost.params > 300_000
mnv2_jax.export_weights(model, variables, "timm", "w.safetensors")
read = mnv2_jax.load_weights("timm:w.safetensors")
assert mnv2_jax.account(read.model, images.shape) == cost
jax.tree.map(np.testing.assert_array_equal, read.variables, variables)
small = mnv2_jax.build(spec="tiny_8", num_classes=10)
few = jax.jit(small.init)(jax.random.key(0), images)
try:
    report = export(small, few, (32, 32), "stablehlo", "model.stablehlo")
    assert report.difference["logits"] < 1e-4
except mnv2_jax.UsageError as error:
    assert "needs the package flatbuffers" in str(error)

from mnv2_jax.nnx import to_linen, twin
jax.tree.map(np.testing.assert_array_equal, to_linen(twin(model, variables)), variables)

from mnv2_jax.__main__ import main
sys.exit(main(["account"]))
"""


def assert_the_library_alone(*command, cwd):
    done = subprocess.run(command, cwd=cwd, text=True, capture_output=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("mnv2: No module named "), done.stderr
    assert done.stderr.endswith("with pip install 'mnv2_jax[train]'.\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.nightly
@pytest.mark.slow
def test_the_library_needs_its_five_packages_and_what_those_need(tmp_path):
    """Every other distribution of this environment is refused, as if it were not there."""
    needed, ahead = set(), [normal(line) for line in project()["dependencies"]]
    while ahead:
        if (name := ahead.pop()) not in needed:
            needed.add(name)
            with contextlib.suppress(metadata.PackageNotFoundError):  # of another platform
                ahead += [normal(r) for r in metadata.requires(name) or () if "extra ==" not in r]
    refused = [
        module
        for module, owners in metadata.packages_distributions().items()
        if not needed & {normal(owner) for owner in owners}
        and module not in ("mnv2_jax", "flatbuffers")
    ]
    assert {"ml_collections", "matplotlib", "PIL"} <= {*refused}
    program = f"""
import sys
class Refuse:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {refused}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse)
sys.path.insert(0, {str(ROOT)!r})
{LIBRARY}"""
    assert_the_library_alone(sys.executable, "-c", program, cwd=tmp_path)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy, so that nothing stale is picked up or left in the checkout."""
    tmp = tmp_path_factory.mktemp("wheel")
    source = tmp / "source"
    source.mkdir()
    shutil.copytree(
        ROOT / "mnv2_jax", source / "mnv2_jax", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp, source, cwd=tmp)
    (built,) = tmp.glob("*.whl")
    return built


@pytest.mark.slow
def test_wheel_holds_the_whole_package(wheel):
    """Every file of the package directory: modules, `py.typed`, embedded data and its licences."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("mnv2_jax/")}
    wanted = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "mnv2_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == wanted
    assert "mnv2_jax/py.typed" in held
    assert any(re.fullmatch(r"mnv2_jax/lab/data/embedded/.*\.npz", name) for name in held)
    assert any(
        re.fullmatch(r"mnv2_jax/lab/data/embedded/.*licen[cs]e.*", name, re.I) for name in held
    )


@pytest.mark.nightly
def test_source_distribution_holds_what_the_checkout_does(tmp_path):
    """Experiments, tests, documentation and results, so that it can be worked with as it is."""
    source = tmp_path / "source"
    left_out = (".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "shared")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*left_out))
    for name in (".ci", ".github"):
        shutil.copytree(ROOT / name, source / name)
    run(
        sys.executable,
        "-m",
        "build",
        "--sdist",
        "--no-isolation",
        "-o",
        tmp_path,
        source,
        cwd=tmp_path,
    )
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    for name in (*GRAFTED, ".ci", ".github", "mnv2_jax"):
        files = [path for path in (source / name).rglob("*") if path.is_file()]
        wanted = {str(path.relative_to(source)) for path in files}
        assert wanted and not wanted - held, name
    assert {"main.py", "Makefile", "mkdocs.yml", "CHANGELOG.md", "requirements-lock.txt"} <= held


@pytest.mark.slow
def test_wheel_installs_and_runs_away_from_the_checkout(wheel, tmp_path):
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    python = venv / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--no-index", "--no-deps", wheel, cwd=tmp_path)
    # The dependencies come from the environment of the tests: installing them again takes minutes.
    # A path file inside a directory that a path file adds is not read, so an editable install of
    # the checkout stays out of reach.
    (site,) = (venv / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")

    script = """
import importlib.metadata, mnv2_jax
print(mnv2_jax.__file__, mnv2_jax.__version__, importlib.metadata.version("mnv2_jax"))
"""
    path, version, metadata = run(python, "-c", script, cwd=tmp_path, JAX_PLATFORMS="cpu").split()
    assert Path(path).is_relative_to(site)
    assert version == metadata == mnv2_jax.__version__
    usage = run(venv / "bin" / "mnv2", "--help", cwd=tmp_path, JAX_PLATFORMS="cpu")
    assert "account" in usage


@pytest.mark.nightly
def test_the_library_installs_with_its_five_packages(wheel, tmp_path):
    """From the package index, into an environment of its own."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    assert_the_library_alone(python, "-c", LIBRARY, cwd=tmp_path)
