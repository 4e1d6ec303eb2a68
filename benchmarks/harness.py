"""Times contenders alternately, each in a process of its own, and reports pairwise ratios.

A shared machine is slower at one moment than at the next, so every round times every contender
once, ratios are taken within rounds, and the median over rounds is what is reported.
"""

import contextlib
import ctypes.util
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mnv2_jax.markdown import markdown_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
PACKAGES = (
    "jax", "jaxlib", "flax", "numpy", "torch", "torchvision", "transformers", "onnxruntime",
    "openvino", "ai-edge-litert", "tflite-micro",
)  # fmt: skip


class Contender(NamedTuple):
    """A function of `benchmarks.contenders` that builds one step, and where it runs.

    Attributes:
      name: in the report.
      build: name of the function; it returns a function without arguments that takes one step.
      options: its arguments.
      threads: cores that the process may use.
      allocator: "glibc" (as it comes), "kept" (`host.keep_freed_memory`) or "jemalloc".
    """

    name: str
    build: str
    options: dict[str, Any]
    threads: int = 2
    allocator: str = "glibc"


def compare(contenders: Sequence[Contender], rounds: int, repeats: int = 1) -> list[dict]:
    """Times all contenders in turn; in a round each takes one step to warm up, then `repeats`."""
    workers = []
    try:
        for contender in contenders:
            worker = _start(contender)
            missing = _receive(worker)
            if missing is None:
                raise SystemExit(f"{contender.name} cannot run here: see the error above.")
            if missing:
                print(f"{contender.name} is left out: {missing}", file=sys.stderr)
                worker.communicate()
                continue
            workers.append((contender, worker, []))
        for i in range(rounds):
            print(f"round {i + 1} of {rounds}", file=sys.stderr)
            for _, worker, seconds in workers:
                print(repeats, file=worker.stdin, flush=True)
                seconds.append(min(_receive(worker)))
    finally:
        for _, worker, _ in workers:
            worker.kill()
            worker.communicate()
    first = workers[0][2]
    return [
        {
            **contender._asdict(),
            "median_ms": 1e3 * statistics.median(seconds),
            "best_ms": 1e3 * min(seconds),
            "ratio": paired(first, seconds),
        }
        for contender, _, seconds in workers
    ]


def paired(values: Sequence[float], base: Sequence[float]) -> float:
    """The median ratio of what was measured in the same round."""
    return statistics.median(a / b for a, b in zip(values, base, strict=True))


def _start(contender: Contender) -> subprocess.Popen:
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        env[name] = str(contender.threads)
    if contender.allocator == "jemalloc":
        env["LD_PRELOAD"] = ctypes.util.find_library("jemalloc") or "libjemalloc.so.2"
    command = [sys.executable, "-m", "benchmarks.harness", json.dumps(contender)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, env=env, text=True, **pipes)


def _receive(worker: subprocess.Popen) -> Any:
    for line in worker.stdout:  # pyright: ignore[reportOptionalIterable]
        if line.startswith("#"):
            return json.loads(line[1:])
    return None


def work(contender: Contender) -> None:
    """Is the worker: builds the step, then times as many steps as each line of input says."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[: contender.threads])
    if contender.allocator == "kept":
        importlib.import_module("mnv2_jax.lab.devices.process").keep_freed_memory()
    contenders = importlib.import_module("benchmarks.contenders")
    try:
        step = getattr(contenders, contender.build)(threads=contender.threads, **contender.options)
    except ImportError as error:
        print("#" + json.dumps(str(error)), flush=True)
        return
    step()
    print('#""', flush=True)
    for line in sys.stdin:
        step()
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        print("#" + json.dumps(seconds), flush=True)


def report(name: str, title: str, tables: dict[str, list[dict]]) -> None:
    """Saves results of `compare`, by what was measured."""
    timings = {
        heading: [
            {
                "": r["name"],
                "threads": r["threads"],
                "allocator": r["allocator"],
                "median ms": f"{r['median_ms']:.1f}",
                "best ms": f"{r['best_ms']:.1f}",
                "ratio": f"{r['ratio']:.2f}",
            }
            for r in rows
        ]
        for heading, rows in tables.items()
    }
    note = "The ratio is the first row's time over this row's, the median over rounds."
    save(name, title, timings, note, tables)


def madds_of(counts: dict[str, Callable[[], int]]) -> dict[str, int]:
    """Multiply-adds of one image by contender; those whose package is missing are left out."""
    found = {}
    for name, count in counts.items():
        with contextlib.suppress(ImportError):
            found[name] = count()
    return found


def report_per_madd(
    name: str, title: str, tables: dict[int, list[dict]], madds: dict[str, int], note: str
) -> None:
    """Saves results of `compare` of networks that differ, by batch size.

    `madds` are those of one image by contender, where they can be told.
    """

    def row(timing: dict, batch: int) -> dict[str, str]:
        cost, each = madds.get(timing["name"]), timing["median_ms"] / batch
        return {
            "": timing["name"],
            "M multiply-adds": f"{cost / 1e6:,.0f}" if cost else "–",
            "median ms": f"{timing['median_ms']:.1f}",
            "best ms": f"{timing['best_ms']:.1f}",
            "ms an image": f"{each:.1f}",
            "ps a multiply-add": f"{1e9 * each / cost:.0f}" if cost else "–",
            "share": f"{1 / timing['ratio']:.2f}",
        }

    shown = {
        f"batch {batch}, {timings[0]['threads']} threads": [row(t, batch) for t in timings]
        for batch, timings in tables.items()
    }
    note += (
        " Where the load is above the number of cores the medians of those that wait for each "
        "other's threads are far off: compare the best times."
    )
    save(name, title, shown, note, {"madds": madds, "timings": tables})


def save(name: str, title: str, tables: dict[str, list[dict]], note: str, raw: Any = None) -> None:
    """Writes results/NAME.json and .md with the machine and versions, and prints the latter.

    Args:
      name: of the files.
      title: the question.
      tables: rows as {column: cell}, by what was measured.
      note: what the reader must know.
      raw: what goes into the JSON, if not the tables.
    """
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    machine = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(v, 1) for v in os.getloadavg()],
        "python": platform.python_version(),
        "versions": versions,
        "command": " ".join(
            ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
        ),
    }
    lines = [f"# {title}", "", f"`{machine['command']}` on {machine['processor']}, "]
    lines[-1] += f"{machine['cores']} cores, load {machine['load'][0]} at the end; "
    lines[-1] += ", ".join(f"{k} {v}" for k, v in versions.items()) + "."
    lines += ["", note]
    for heading, rows in tables.items():
        lines += ["", f"## {heading}", ""]
        lines += [markdown_table(rows[0], [row.values() for row in rows])]
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines) + "\n"
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(
        json.dumps({**machine, "tables": raw or tables}, indent=1)
    )
    print(text)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


if __name__ == "__main__":
    work(Contender(*json.loads(sys.argv[1])))
