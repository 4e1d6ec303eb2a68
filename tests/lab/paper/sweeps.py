"""Finished sweeps as they lie on a disk, written by hand."""

import json

NOISE = (-0.01, 0.0, 0.01)
SWEEPS = {
    "ablate_linear": {"linear": 0.96, "relu6": 0.93},
    "ablate_shortcut": {"between_bottlenecks": 0.95, "between_expansions": 0.94, "none": 0.90},
    "tradeoff": {"width_35-size_8": 0.90, "width_100-size_8": 0.95, "width_100-size_16": 0.97},
}


def write_sweep(folder, name, logs=False):
    """Three seeds a variant, with a log of two evaluations if wanted."""
    place, runs = folder / name, {}
    place.mkdir(parents=True)
    for variant, score in SWEEPS[name].items():
        runs[variant] = [
            {"seed": i, "steps": 20, "metrics": {"eval/accuracy": score + noise}}
            for i, noise in enumerate(NOISE)
        ]
        for i, noise in enumerate(NOISE if logs else ()):
            rows = [
                {"step": step, "split": "eval", "accuracy": value}
                for step, value in ((10, 0.5), (20, score + noise))
            ]
            seed = place / variant / f"seed_{i}"
            seed.mkdir(parents=True)
            (seed / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = f"python main.py --config experiments/{name}.py"
    results = {"metric": "eval/accuracy", "runs": runs, "command": command}
    (place / "results.json").write_text(json.dumps(results))
    report = f"# Title\n\nTop-1 accuracy on the test split of {name} digits. And more.\n\nRest"
    (place / "report.md").write_text(report)
    return place
