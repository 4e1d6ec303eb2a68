"""The bits of a short training on the digits, against those that were recorded.

    python -m tests.bits            # compares
    python -m tests.bits --record   # writes tests/bits.json

They hold for a release of jaxlib and a set of instructions: XLA compiles for those that the
processor has, and each may round otherwise. One device and one thread are used, for sums are
divided among them.
"""

import argparse
import hashlib
import json
import platform
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from safetensors.numpy import load_file

from mnv2_jax.files import write_json
from tests.processes import MAIN, ROOT, environment

FILE = ROOT / "tests" / "bits.json"
CONFIG = """
from experiments import ablate_linear
from mnv2_jax.lab.train.sweep import variant_config


def get_config():
    config = variant_config(ablate_linear.get_config(), "linear")
    with config.unlocked():
        config.sweep.variants = {"linear": {}}
    config.sweep.claim, config.sweep.looks, config.sweep.seeds = (), (), (0,)
    config.steps, config.optimizer.warmup_epochs = 20, 0.1
    return config
"""
RECORD = "python -m tests.bits --record"
# Sets of instructions that compute with vectors, as /proc/cpuinfo names them on x86.
VECTORS = re.compile("sse|ssse|avx|fma|f16c|amx")


def instructions() -> str:
    """What this processor can do that XLA compiles for."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    listed = re.search(r"^(flags|Features)\s*: (.*)$", text, re.MULTILINE)
    every = listed[2].split() if listed else []
    x86 = listed is not None and listed[1] == "flags"
    own = [flag for flag in every if VECTORS.match(flag) or not x86]
    return " ".join([platform.machine(), *sorted(own)])


def train() -> dict[str, str]:
    """The hash of all trained arrays, and that of the programs that computed them."""
    with tempfile.TemporaryDirectory() as folder:
        env = environment(Path(folder), optimized=True)
        Path(folder, "short.py").write_text(CONFIG)
        command = [*MAIN, "--config", f"{folder}/short.py", "--workdir", f"{folder}/run", "--quiet"]
        subprocess.run(command, env=env, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        place, content = Path(folder, "run/linear/seed_0"), hashlib.sha256()
        for name, array in sorted(load_file(place / "model.safetensors").items()):
            content.update(name.encode() + array.tobytes())
        (origin,) = json.loads((place / "result.json").read_text())["origins"]
    return {"arrays": content.hexdigest(), **origin["fingerprint"]}


def compare(recorded: dict, found: dict[str, str]) -> str:
    """What is wrong, in a line; empty if nothing is."""
    if recorded["arrays"] == found["arrays"]:
        return ""
    changed = [part for part in found.keys() - {"arrays"} if recorded[part] != found[part]]
    if changed:
        what = f"{', '.join(sorted(changed))} of the training changed since its bits were recorded"
    else:
        what = "the same programs, data and configuration give other bits than were recorded"
    return f"{what}: if that is meant, `{RECORD}` records them anew"


def recorded() -> tuple[str, dict | None]:
    """What the bits here depend on, and those that were recorded for it."""
    key = f"jaxlib {version('jaxlib')}, {instructions()}"
    return key, json.loads(FILE.read_text()).get(key)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bits")
    parser.add_argument("--record", action="store_true")
    record, (key, known) = parser.parse_args(arguments).record, recorded()
    if record:
        every = json.loads(FILE.read_text()) | {key: train()}
        write_json(FILE, dict(sorted(every.items())))
    elif known is None:
        print(f"no bits are recorded for {key}: `{RECORD}` records them")
    elif problem := compare(known, train()):
        print(problem)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
