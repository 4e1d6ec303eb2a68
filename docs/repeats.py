"""Does the protocol decide rightly? An ablation repeated with other seeds, and A against A.

    python -m docs.repeats

Twenty repetitions of `ablate_linear.py`, each with up to 64 seeds of its own, as if nobody knew of
the others: how many confirm the claim, and after how many seeds. Then the trainings of its first
variant, against each other: two groups are drawn from them at random, a thousand times, and looked
at like two variants that differ; so many are wrongly told apart. It goes on where it was
interrupted, and writes results/repeats (docs/protocol.md).
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from experiments import ablate_linear
from mnv2_jax.files import write_file, write_json
from mnv2_jax.lab.devices import process
from mnv2_jax.lab.train.decision import CONFIRMED, REFUTED, decide
from mnv2_jax.lab.train.report import environment, judged, points, read_runs, scores_of
from mnv2_jax.lab.train.sweep import run_sweep
from mnv2_jax.markdown import markdown_table

COMMAND = ("python", "-m", "docs.repeats")
TIMES = 1000  # that A is compared with A


def repeat(number: int, workdir: Path) -> dict:
    """Runs one repetition; returns the scores of its seeds, and what they decide."""
    config = ablate_linear.get_config()
    most = max(config.sweep.looks)
    config.sweep.seeds = tuple(range(number * most, (number + 1) * most))
    folder = workdir / f"{number:02}"
    run_sweep(config, folder, COMMAND, quiet=True)
    trained = len(list((folder / config.sweep.reference).glob("seed_*/result.json")))
    results = read_runs(folder, config, trained)
    (decision,) = judged(results)
    return {"scores": scores_of(results), "decision": decision._asdict()} | {
        "looks": list(config.sweep.looks), "delta": config.sweep.delta,
    }  # fmt: skip


def against_itself(scores: np.ndarray, looks: list[int], delta: float) -> Counter:
    """Counts what is decided of two groups of one variant's scores, drawn `TIMES` times."""
    rng, size = np.random.default_rng(0), min(max(looks), len(scores) // 2)
    outcomes: Counter = Counter()
    for _ in range(TIMES):
        drawn = rng.permutation(scores)[: 2 * size].reshape(2, size)
        (decision,) = decide("ab", {"a": drawn[0], "b": drawn[1]}, delta, looks)
        outcomes[decision.outcome] += 1
    return outcomes


def report(repetitions: list[dict]) -> tuple[str, dict]:
    """Returns the report of all repetitions, and its numbers."""
    found = [repetition["decision"] for repetition in repetitions]
    better, worse = found[0]["better"], found[0]["worse"]
    scores = np.concatenate([repetition["scores"][better] for repetition in repetitions])
    looks, delta = repetitions[0]["looks"], repetitions[0]["delta"]
    same, outcomes = against_itself(scores, looks, delta), Counter(d["outcome"] for d in found)
    rows = [
        (i, d["n"], f"{d['wins']} of {d['n']}", points(d["difference"], unit=""), f"{d['p']:.2g}",
         d["outcome"])
        for i, d in enumerate(found)
    ]  # fmt: skip
    wrong = same[CONFIRMED] + same[REFUTED]
    counted = ", ".join(f"{n} {name}" for name, n in outcomes.most_common())
    text = "\n\n".join((
        "# How often the protocol decides, and how often it is wrong",
        f"*{better}* above *{worse}* ({ablate_linear.__name__.rpartition('.')[2]}), on digits, in "
        f"{len(found)} repetitions with seeds of their own: {counted}. They took "
        f"{np.median([d['n'] for d in found]):g} seeds in the middle.",
        markdown_table(
            ("repetition", "seeds", f"{better} wins", "difference in points", "p", "decision"), rows
        ),
        f"*{better}* against itself: of {TIMES} pairs of groups drawn from its {len(scores)} "
        f"trainings, {wrong} are told apart, {wrong / TIMES:.1%}, where 5 % are allowed; "
        f"{same['equivalent']} are equivalent within {100 * delta:g} points, and "
        f"{same['undecided']} stay undecided.",
        f"- command: `{' '.join(COMMAND)}`",
    ))  # fmt: skip
    return text + "\n", {"repetitions": repetitions, "against itself": dict(same)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="repetitions (20)")
    parser.add_argument("--workdir", type=Path, default=Path("runs/repeats"))
    parser.add_argument("--out", type=Path, default=Path("results/repeats"))
    arguments = parser.parse_args()
    process.use_compilation_cache()
    process.split_cpu(process.cores())
    repetitions = []
    for number in range(arguments.times):
        repetitions.append(repeat(number, arguments.workdir.absolute()))
        found = repetitions[-1]["decision"]
        print(f"{number}: {found['outcome']} with {found['n']} seeds", flush=True)
    text, numbers = report(repetitions)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "results.json", numbers | {"environment": environment()})
    write_file(arguments.out / "report.md", text)
    print(text)


if __name__ == "__main__":
    main()
