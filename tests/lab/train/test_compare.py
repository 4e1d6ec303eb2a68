"""Two finished runs against each other: numbers against scipy, and what cannot be compared."""

import json

import numpy as np
import pytest
from scipy import stats

from mnv2_jax.errors import UsageError
from mnv2_jax.lab import cli
from mnv2_jax.lab.seal import sealed
from mnv2_jax.lab.train.compare import compare, read_side
from mnv2_jax.lab.train.decision import decide, over_images
from mnv2_jax.lab.train.record import Identity, write_right
from tests.lab.paper.test_results import refusals

SETTINGS = {
    "task": "classify", "data.name": "digits", "data.eval_split": "test", "data.root": None,
    "steps": 12, "model.width": 1.0, "title": "Title", "sweep.reference": "a",
    "sweep.seeds": [0, 1], "sweep.variants.b.model.width": 0.5,
}  # fmt: skip
A = {0: 0.91, 1: 0.94, 2: 0.92, 3: 0.95, 4: 0.93, 5: 0.97, 6: 0.9}
B = {0: 0.9, 1: 0.9, 2: 0.91, 3: 0.9, 4: 0.88, 5: 0.92, 6: 0.88}


def write(folder, variants, metric="eval/accuracy", more=(), jax="0.12", **changes):
    """The results of a run; `more` are splits that are there besides the metric's."""
    split, _, name = metric.partition("/")
    runs = {
        variant: [
            {"seed": seed, "metrics": {f"{of}/{name}": score for of in (split, *more)}}
            for seed, score in scores.items()
        ]
        for variant, scores in variants.items()
    }
    machine = {"versions": {"jax": jax}, "python": "3.13", "device": "2 × cpu"}
    results = {
        "metric": metric, "runs": runs, "config": SETTINGS | changes, "environment": machine,
        "setting": {"metric": "top-1 accuracy"},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(sealed(results)))
    return folder


def compared(a, b, delta=0.01):
    return compare(read_side(str(a)), read_side(str(b)), delta)


def shuffled(scores, seed=0):
    return {n: scores[n] for n in np.random.default_rng(seed).permutation(list(scores)).tolist()}


def test_the_numbers_are_those_of_scipy_whatever_the_order_of_seeds(tmp_path):
    one, other = write(tmp_path / "one", {"a": A}), write(tmp_path / "other", {"b": shuffled(B)})
    found = compared(one, other / "results.json", 0.02)
    apart, decision = np.subtract(list(A.values()), list(B.values())), found.decision

    def p(mean):
        options = {"permutation_type": "samples", "n_resamples": np.inf}
        return stats.permutation_test(
            (apart - mean,), lambda x: np.mean(x).round(12), **options
        ).pvalue

    assert decision.difference.mean == pytest.approx(apart.mean())
    assert decision.p == p(0) == 2 / 2**7 and decision.outcome == "confirmed"
    for end, outwards in zip(decision.difference[1:], (-1e-6, 1e-6), strict=True):
        assert p(end + outwards) <= 0.05 < p(end - outwards)
    sides = [stats.ttest_1samp(apart, -0.02, alternative="greater").pvalue]
    sides += [stats.ttest_1samp(apart, 0.02, alternative="less").pvalue]
    assert decision.p_equivalent == pytest.approx(max(sides))
    assert found.seeds == list(range(7)) and decision.n == 7
    write(one, {"a": shuffled(A, 1)})
    assert compared(one, other, 0.02).decision[2:] == decision[2:]
    assert compared(other, one).decision.outcome == "refuted"


def keep_images(folder, variant, scores, n=100, seed=0, place="digits"):
    """As `write` has it, which images are right; returns them by seed."""
    rng, kept = np.random.default_rng(seed), {}
    for number, score in scores.items():
        kept[number] = rng.permutation(np.arange(n) < round(n * score))
        home = folder / variant / f"seed_{number}"
        home.mkdir(parents=True, exist_ok=True)
        result = {"metrics": {"eval/accuracy": score}, "model_sha256": None}
        whose = Identity("run", variant, (number,))
        write_right(home, f"test of {place}", kept[number], result, whose)
    (folder / "data.json").write_text(json.dumps(sealed({f"test of {place}": {"sha256": "1"}})))
    return kept


def test_runs_that_keep_the_same_images_have_an_interval_over_them(tmp_path, capsys):
    one, other = write(tmp_path / "one", {"a": A}), write(tmp_path / "other", {"b": shuffled(B)})
    kept = keep_images(one, "a", A), keep_images(other, "b", shuffled(B), seed=1)
    found = compared(one, other).over_images
    apart = np.array([kept[0][n].astype(int) - kept[1][n] for n in range(7)])
    assert found == over_images(apart) and found.low < found.mean < found.high
    assert cli.main(["compare", str(one), str(other)]) == 0
    numbers = "{:+.1f} points [{:+.1f}, {:+.1f}]".format(*(100 * value for value in found))
    assert f"       {numbers} over seeds and test images\n" in capsys.readouterr().out
    assert cli.main(["compare", str(one), str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["over_images"] == found._asdict()
    right = other / "b" / "seed_6" / "right.json"
    for change in (right.unlink, lambda: keep_images(other, "b", {**B, 6: 0.5})):
        change()  # to none, and to another number of right ones than the result has
        assert compared(one, other).over_images is None
    keep_images(other, "b", B)
    (other / "data.json").unlink()
    assert compared(one, other).over_images is None


def test_seeds_are_paired_by_number_and_what_one_side_lacks_is_left_out(tmp_path):
    write(tmp_path / "one", {"a": {3: 0.5, 5: 0.6, 7: 0.9, 9: 0.1}})
    write(tmp_path / "other", {"b": {7: 0.8, 1: 0.2, 5: 0.3}})
    found = compared(tmp_path / "one", tmp_path / "other")
    assert found.seeds == [5, 7] and found.left_out == ([3, 9], [1])
    assert found.decision.difference.mean == pytest.approx((0.3 + 0.1) / 2)


def test_looks_that_a_sweep_planned_share_the_error_rate(tmp_path):
    """A sweep that ends when its claim is decided would otherwise find too much."""
    looks = {"sweep.looks": [4, 7], "sweep.seeds": list(range(20))}
    run = write(tmp_path / "run", {"a": A, "b": B}, **looks)
    found = compared(f"{run}:a", f"{run}:b")
    assert found.looks == [4, 7, 20] and found.decision.p == 2 / 2**7
    expected = decide("ab", {"a": list(A.values()), "b": list(B.values())}, 0.01, [4, 7, 20])
    assert found.decision[2:] == expected[0][2:]
    other = write(tmp_path / "other", {"b": {n: B[n] for n in range(6)}})
    assert compared(f"{run}:a", other).decision.outcome == "undecided"  # 2 / 2**6 > 0.05 / 4
    assert compared(write(run, {"a": A}), other).decision.outcome == "confirmed"


def test_what_else_differs_is_told(tmp_path):
    """A variant's own settings count, not the sweep's; what changes no result does not."""
    run = write(tmp_path / "run", {"a": A, "b": B})
    found = compared(f"{run}:a", f"{run}:b")
    assert found.settings == {"model.width": (1.0, 0.5)} and found.versions == {}
    longer = {"steps": 24, "title": "Other", "data.threads": 3, "time": "", "patience": 5}
    other = write(tmp_path / "other", {"b": B}, jax="0.13", **longer)
    found = compared(f"{run}:b", other)
    assert found.settings == {"steps": (12, 24), "patience": (None, 5)}
    assert found.versions == {"jax": ("0.12", "0.13")}


@pytest.mark.parametrize(
    ("one", "other", "metric"),
    [
        (("eval_ema", "eval"), ("eval_ema", "eval"), "eval_ema"),
        (("eval_ema", "eval"), ("eval",), "eval"),
        (("eval", "eval_ema"), ("eval_ema",), "eval_ema"),
    ],
)
def test_averaged_weights_are_compared_where_both_have_them(tmp_path, one, other, metric):
    for name, (first, *more) in (("one", one), ("other", other)):
        write(tmp_path / name, {"a": A}, f"{first}/accuracy", more)
    found = compared(tmp_path / "one", tmp_path / "other")
    assert found.metric == f"{metric}/accuracy"
    assert found.what.endswith("averaged weights") == (metric == "eval_ema")


def keep_data(folder, content, root="digits"):
    (folder / "data.json").write_text(json.dumps(sealed({f"test of {root}": content})))


def test_the_same_images_may_lie_elsewhere_and_other_images_in_the_same_place(tmp_path):
    one = write(tmp_path / "one", {"a": A})
    other = write(tmp_path / "other", {"b": B}, **{"data.root": "/there"})
    with pytest.raises(UsageError, match=r"data\.root is None in .* and '/there' in"):
        compared(one, other)
    keep_data(one, {"records": 9})
    keep_data(other, {"records": 9}, "/there")
    assert compared(one, other).decision.outcome == "confirmed"
    keep_data(other, {"records": 8}, "/there")
    with pytest.raises(UsageError, match=r"data\.root is None"):
        compared(one, other)
    write(other, {"b": B})
    keep_data(other, {"records": 8})
    with pytest.raises(UsageError, match="were evaluated on other images"):
        compared(one, other)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs of every kind in the current folder; `one` is what the others are compared with."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "one", {"a": A})
    write(tmp_path / "two", {"a": A, "b": B})
    write(tmp_path / "set", {"a": A}, **{"data.name": "mnist"})
    write(tmp_path / "split", {"a": A}, **{"data.eval_split": "val"})
    write(tmp_path / "resplit", {"a": A}, **{"data.resplit": True})
    write(tmp_path / "task", {"a": A}, **{"task": "segment"})
    write(tmp_path / "metric", {"a": A}, "eval/map")
    write(tmp_path / "few", {"a": {6: 0.5, 7: 0.5}})
    write(tmp_path / "none", {"a": {8: 0.5, 7: 0.5}})
    write(tmp_path / "null", {"a": {0: None, 1: 0.5}})
    write(tmp_path / "empty", {})
    for name in ("begun", "two/a", "two/a/seed_0"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("begun/config.json", "two/a/seed_0/config.json", "two/a/seed_0/result.json"):
        (tmp_path / name).write_text("{}")
    text = (tmp_path / "one/results.json").read_text()
    old = {k: v for k, v in json.loads(text).items() if k in ("metric", "runs")}
    damaged = {"edited": text.replace("0.91", "0.99"), "cut": text[:200], "old": json.dumps(old)}
    for name, content in damaged.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(content)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("set", "data.name is 'digits' in one and 'mnist' in set: give runs that"),
        ("split", "data.eval_split is 'test' in one and 'val' in split"),
        ("resplit", "data.resplit is False in one and True in resplit"),
        ("task", "task is 'classify' in one and 'segment' in task"),
        ("metric", "one by eval/accuracy and metric by eval/map are scored"),
        ("few", "only seed 6 is in both, for one has 0, 1, 2, 3, 4, 5, 6 and few has 6, 7: train"),
        ("none", "no seed is in both"),
        ("null", "null/results.json cannot be read (the score None is not from 0 to 1)"),
        ("empty", "empty/results.json cannot be read (it holds no runs)"),
        ("two", "two has several variants, a, b: say which, as in two:a."),
        ("two:c", "unknown variant of two 'c': The choices are a, b."),
        ("begun", "begun has no results.json, so it is not finished: give the command of its"),
        ("begun:a", "`mnv2 finish` makes models of what is there"),
        ("two/a", "'two/a' is no run, for it has no results.json: give one, as two:a."),
        ("two/a/seed_0", "'two/a/seed_0' is no run"),
        ("nowhere", "'nowhere' is no run, for it has no results.json: give one, as runs/"),
        (":a", "the run is empty"),
        ("~nobody-here/x", "is of no user here"),
        ("edited", "edited/results.json cannot be read (is not what was written: its seal"),
        ("cut", "cut/results.json cannot be read"),
        ("old", "it is of release 0.1.0, which did not keep the setting): give the command"),
        ("one/results.json", "one is given twice: give two runs"),
        ("two:b --delta 0", "delta is 0.0: it must be between 1e-06 and 1"),
        ("two:b --delta -0.01", "delta is -0.01"),
        ("two:b --delta nan", "delta is nan"),
        ("two:b --delta x", "--delta: invalid float value: 'x'"),
    ],
)
def test_what_cannot_be_compared_is_told_in_a_line(capsys, words, message):
    assert cli.main(["compare", "one", *words.split()]) == cli.EXIT_USAGE
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and message in err, err


@pytest.mark.slow
def test_values_of_another_type_are_told_in_a_line(tmp_path):
    one = read_side(str(write(tmp_path / "one", {"a": A})))
    run = write(tmp_path / "run", {"a": {0: 0.5, 1: 0.7}})
    content = json.loads((run / "results.json").read_text())
    del content["seal"]
    (run / "results.json").write_text(json.dumps(content))

    def use():
        try:
            compare(one, read_side(str(run)), 0.01)
        except UsageError as error:  # of what is readable, and not alike
            if "results.json" in str(error):
                raise

    assert refusals(run / "results.json", use) > 100


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("two:a two:b", "A above B: confirmed. A is better than B: were they alike, chance would "
         "show such a difference in 1.6 of 100 comparisons.\nnote: they differ in model.width "
         "(1.0 | 0.5)\n"),
        ("two:b two:a", "A above B: refuted. A is worse than B"),
        ("one two:a", "equivalent. A and B are alike: they differ by less than 1 point.\nnote: "
         "they differ in no setting\n"),
        ("few few7", "undecided. 2 seeds cannot tell A from B: so few never show that"),
    ],
)  # fmt: skip
def test_a_comparison_is_printed_in_words(tmp_path, capsys, words, said):
    write(tmp_path / "few7", {"a": {6: 0.4, 7: 0.6}}, jax="0.13")
    assert cli.main(["compare", *words.split()]) == 0
    out = capsys.readouterr().out
    assert said in out and out.startswith("Top-1 accuracy on the test split of digits; ")
    assert ("note: made with other versions: jax (0.12 | 0.13)" in out) == ("few7" in words)
    assert cli.main(["compare", *words.split(), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["outcome"] in said and len(content["seeds"]) == content["n"]
    assert [content["better"], content["worse"]] == words.split()
    mean = np.subtract(*content["scores"]).mean()
    assert content["difference"]["mean"] == pytest.approx(mean)
