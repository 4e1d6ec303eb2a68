"""What the notebook needs before it begins: the project's packages, for the hardware there is."""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

CHECKOUT = Path(__file__).resolve().parents[1]
TPUS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}  # as JAX knows them
BACKEND = {"tpu": "tpu", "cuda": "gpu", "cuda12": "gpu", "": "cpu"}  # by extra


def run(*command: object) -> None:
    """Runs a command in the checkout and shows what it prints; stops the notebook if it fails."""
    words = [str(word) for word in command]
    with subprocess.Popen(
        words, cwd=CHECKOUT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        for line in process.stdout or ():
            print(line, end="")
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} failed; what it printed says why")


def mnv2(*words: object) -> None:
    """Runs a verb of the project, as `python main.py` does."""
    run(sys.executable, "main.py", *words)


def install(*more: tuple[str, str]) -> None:
    """Installs what is missing.

    Args:
      more: extras of the project, each with a module that is there if the extra is.
    """
    hardware = _hardware()
    extras = [extra for extra, module in more if not importlib.util.find_spec(module)]
    if any(_lacking()) or backend() != BACKEND[hardware]:
        extras += ["train", *filter(None, [hardware])]
    if extras:
        run(sys.executable, "-m", "pip", "install", "--quiet", "-e", f".[{','.join(extras)}]")


def backend() -> str:
    """What JAX computes on, asked in a process of its own: this one must not hold the device."""
    probe = "import jax; print(jax.default_backend())"
    said = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    return said.stdout.strip() or said.stderr.strip()


def _hardware() -> str:
    """The project's extra for this machine: tpu, cuda, cuda12, or none."""
    for vendor in Path("/sys/bus/pci/devices").glob("*/vendor"):
        device = vendor.with_name("device").read_text().strip()
        if vendor.read_text().strip() == "0x1ae0" and device in TPUS:
            return "tpu"
    if shutil.which("nvidia-smi"):
        said = subprocess.run("nvidia-smi", capture_output=True, text=True).stdout
        if version := re.search(r"CUDA Version: (\d+)", said):
            return "cuda" if int(version[1]) >= 13 else "cuda12"
    return ""


def _lacking() -> Iterator[str]:
    """Requirements of the project that are not installed, or too old."""
    for line in (CHECKOUT / "requirements.txt").read_text().splitlines():
        if not (line := line.partition("#")[0].strip()):
            continue
        need = Requirement(line)
        try:
            met = metadata.version(need.name) in need.specifier
        except metadata.PackageNotFoundError:
            met = need.marker is not None and not need.marker.evaluate()
        if not met:
            yield line
