"""What the experiments would take on TPUs and GPUs, estimated by their compilers: results/plan.

    python -m docs.plans

Each row is `mnv2 plan` in a process of its own, a minute to ten on two cores. What is in
results/plan/results.json already is kept; remove it to begin anew. `--check` compiles the first
rows again and fails where memory, traffic or cycles have grown by more than 5 %.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax

from mnv2_jax.files import write_file, write_json
from mnv2_jax.lab.train.provenance import commit
from mnv2_jax.lab.train.report import environment
from mnv2_jax.markdown import markdown_table

AT_224 = ["--config.batch_size=128", "--config.eval_batch_size=128"]
# (experiment, devices, overrides)
PLANS = (
    ("ablate_linear.py", "v5e-1", []),
    ("imagenet.py", "v5e-1", AT_224),
    ("imagenet.py", "h100", AT_224),
    ("imagenet.py", "8xh100", []),
    ("imagenet.py", "v5e-8", []),
    ("imagenet.py", "v2-8", []),
    ("ablate_linear.py:fashion_mnist", "v5e-1", []),
    ("detect_coco.py", "v5e-1", []),
    ("detect_coco.py", "8xh100", []),
    ("segment_voc.py", "v5e-1", []),
    ("segment_voc.py", "8xh100", []),
    ("ablate_linear.py", "h100", []),
    ("cifar10.py", "v5e-1", []),
    ("imagenet.py", "v4-8", []),
    ("imagenet.py", "v5e-256", ["--config.batch_size=4096"]),
)
GROWN = 1.05
HEAD = [
    "experiment", "devices", "images a step", "memory, GB", "step, ms", "images a second",
    "traffic, MB an image", "all-reduces", "whole training, hours", "largest batch",
]  # fmt: skip


def plan(experiment: str, on: str, overrides: list[str]) -> dict:
    """Compiles one row; a plan that is refused is kept with its reason."""
    command = ["plan", "--config", f"experiments/{experiment}", "--on", on, *overrides]
    done = subprocess.run(
        [sys.executable, "main.py", *command, "--json"], text=True, capture_output=True
    )
    told = {"command": " ".join(["python", "main.py", *command]), "commit": commit()}
    if done.returncode:
        return told | {"refused": done.stderr.strip().splitlines()[-1].removeprefix("mnv2: ")}
    return told | json.loads(done.stdout)


def row(experiment: str, found: dict) -> list[str]:
    """Returns a line of the table."""
    devices = found["command"].split("--on ")[1].split()[0]
    if "refused" in found:
        return [experiment, devices, found["refused"], *[""] * (len(HEAD) - 3)]
    step = found["programs"]["step"]
    images = step["images"] * found["seeds"]
    number, _ = step["collectives"].get("all-reduce", (0, 0))
    return [
        experiment, devices,
        f"{step['images']:,}" + f" × {found['seeds']} seeds" * (found["seeds"] > 1),
        f"{sum(step['memory'].values()) / 1e9:.2f}", f"{step['seconds'] * 1e3:.2f}",
        f"{images / step['seconds']:,.0f}",
        f"{step['traffic'] / images * found['devices'] / 1e6:.1f}", f"{number}",
        f"{found['hours']:.2g}", f"{found['largest_batch']:,}",
    ]  # fmt: skip


def grown(before: dict, now: dict) -> list[str]:
    """Says what a program takes more of than it did."""
    kinds = {
        "memory": lambda step: sum(step["memory"].values()),
        "traffic": lambda step: step["traffic"], "cycles": lambda step: step["cycles"],
    }  # fmt: skip
    was, own = before["programs"]["step"], now["programs"]["step"]
    pairs = {name: (of(was), of(own)) for name, of in kinds.items()}
    return [f"{k} from {a:,} to {b:,}" for k, (a, b) in pairs.items() if b > GROWN * a]


def main() -> None:
    """Compiles what is missing, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/plan"))
    parser.add_argument("--check", type=int, metavar="N", help="compile the first N rows again")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # of what may be here nothing is used
    place = arguments.out / "results.json"
    known = json.loads(place.read_text()) if place.is_file() else {"plans": {}}
    plans = known["plans"]
    if arguments.check:
        worse = {}
        for experiment, on, overrides in PLANS[: arguments.check]:
            now, name = plan(experiment, on, overrides), f"{experiment} on {on}"
            worse[name] = [now["refused"]] if "refused" in now else grown(plans[name], now)
        sys.exit("\n".join(f"{k}: {'; '.join(v)}" for k, v in worse.items() if v) or 0)
    for experiment, on, overrides in PLANS:
        name = f"{experiment} on {on}"
        if name in plans:
            continue
        print(name, flush=True)
        plans[name] = plan(experiment, on, overrides)
        here = environment()
        commits = sorted({found["commit"] for found in plans.values()})
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_json(place, {**here, "plans": plans})
        lines = [row(key.partition(" on ")[0], found) for key, found in plans.items()]
        write_file(
            arguments.out / "report.md",
            "# What a training would take elsewhere\n\nEstimated by the compilers for these devices"
            ", on a machine without them; nothing here is measured. A step takes at least as long "
            "as memory traffic, arithmetic or links do at the devices' peaks; on TPUs it is the sum"
            " of the cycles that the compiler expects. The hours are those of such steps.\n\n"
            + markdown_table(HEAD, lines)
            + f"\n\n- command: `python -m docs.plans`\n- commits: {', '.join(commits)}\n"
            f"- versions: jax {here['versions']['jax']}, jaxlib {here['versions']['jaxlib']}\n",
        )


if __name__ == "__main__":
    main()
