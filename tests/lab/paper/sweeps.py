"""Finished sweeps as they lie on a disk, written by hand."""

import json

from mnv2_jax.lab.predict import EVALUATION

NOISE = (-0.01, 0.0, 0.01)
SWEEPS = {
    "ablate_linear": {"linear": 0.96, "relu6": 0.93},
    "ablate_shortcut": {"between_bottlenecks": 0.95, "between_expansions": 0.94, "none": 0.90},
    "tradeoff": {"small": 0.90, "half": 0.95, "large": 0.97},
}
NETWORKS = {  # variants of the trade-off -> width, resolution, multiply-adds
    "small": (0.35, 8, 38_032), "half": (1.0, 8, 112_976), "large": (1.0, 16, 449_984),
}  # fmt: skip
SETTING = {
    "title": "Title", "metric": "top-1 accuracy", "averaged": False, "data": "digits",
    "split": "test", "steps": 20, "batch_size": 64,
}  # fmt: skip


def network(width=1.0, resolution=8, madds=0, **options):
    """What a report says of a network."""
    options = {"width": width, **options}
    return {"options": options, "resolution": resolution, "params": 0, "madds": madds}


def write_results(place, scores, networks=None, metric="eval/accuracy", **setting):
    """The results of a sweep; `networks` None leaves out the setting, as earlier versions did."""
    place.mkdir(parents=True)
    runs = {
        variant: [{"seed": i, "steps": 20, "metrics": {metric: s}} for i, s in enumerate(each)]
        for variant, each in scores.items()
    }
    results = {"metric": metric, "runs": runs}
    results["command"] = f"python main.py --config experiments/{place.name}.py"
    if networks is not None:
        results["setting"] = {**SETTING, "networks": networks, **setting}
    (place / "results.json").write_text(json.dumps(results))
    return place


def write_sweep(folder, name, logs=False):
    """Three seeds a variant, with a log of two evaluations if wanted."""
    scores = {variant: [s + noise for noise in NOISE] for variant, s in SWEEPS[name].items()}
    networks = {variant: network(*NETWORKS.get(variant, ())) for variant in scores}
    place = write_results(folder / name, scores, networks)
    for variant, each in scores.items() if logs else ():
        for i, score in enumerate(each):
            rows = [
                {"step": step, "split": "eval", "accuracy": value}
                for step, value in ((10, 0.5), (20, score))
            ]
            seed = place / variant / f"seed_{i}"
            seed.mkdir(parents=True)
            (seed / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def write_evaluation(folder, data, scores, options, resolution, scales=(1.0,), ecosystem="slim"):
    """What `mnv2 evaluate --out` keeps of an imported model."""
    source = {"ecosystem": ecosystem, "file": "v2.ckpt", "sha256": "0"}
    content = {
        "data": data, "split": "test", "images": 50_000, "scores": scores, "folder": "models/v2",
        "views": {"scales": scales, "flip": len(scales) > 1}, "command": "python main.py evaluate",
        "model": {"model": options, "resolution": resolution, "source": source},
    }  # fmt: skip
    folder.mkdir()
    (folder / EVALUATION).write_text(json.dumps(content))


def fake_bytes(model, size, band=None):
    """For `temporary_bytes`, which compiles long: 10 kB a pixel's side, the less the more parts."""
    return size * 10_000 // (model.split if band is None else 2)
