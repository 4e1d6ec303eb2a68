"""Programs compiled ahead: the counts against texts with known ones, and against what trains."""

import jax
import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.lab.cli import main
from mnv2_jax.lab.train import ahead
from mnv2_jax.lab.train.config import load_config
from mnv2_jax.lab.train.run import make_run, settle
from mnv2_jax.lab.train.sweep import check_variants
from tests.lab.train.setting import tiny

HERE = ahead.Chip(memory=1e9, bandwidth=1e10, peak=1e11, links=1e9)
MODULE = """
%body (p: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %p = (s32[]{:T(128)}, f32[4,4]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %m = f32[4,4]{1,0} get-tuple-element(%p), index=1
  %square = f32[4,4]{1,0} dot(%m, %m), backend_config={"estimated_cycles":"10"}
  ROOT %out = (s32[]{:T(128)}, f32[4,4]{1,0}) tuple(%i, %square)
}

ENTRY %main (x: f32[4,4], y: bf16[8]) -> f32[4,4] {
  %x = f32[4,4]{1,0} parameter(0)
  %y = bf16[8]{0} parameter(1)
  %there = (bf16[8]{0:T(128)S(1)}, bf16[8]{0}, u32[]{:S(2)}) copy-start(%y)
  %fast = bf16[8]{0:T(128)S(1)} copy-done(%there)
  %twice = bf16[8]{0:T(128)S(1)} fusion(%fast), kind=kLoop, backend_config={"estimated_cycles":"5"}
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,4]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[4,4]{1,0}) while(%start), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %last = f32[4,4]{1,0} get-tuple-element(%loop), index=1
  ROOT %sum = f32[4,4]{1,0} all-reduce(%last), replica_groups={}, to_apply=%add
}
"""  # noqa: E501


def test_loops_count_as_often_as_they_run_and_chip_memory_not_at_all():
    found = ahead.count(MODULE)
    matrix, vector, flag = 64, 16, 4
    loop = 3 * 3 * matrix  # two operands and a result
    assert found.traffic == (vector + flag) + loop + 2 * matrix
    assert found.kernels == 3 + 3 and found.cycles == 5 + 3 * 10
    assert found.collectives == {"all-reduce": (1, matrix)}


def here(count):
    return ahead.Place("here", "cpu", HERE, jax.devices()[:count])


@pytest.mark.slow
def test_what_is_forecast_is_what_trains():
    """The program compiled ahead is the one that a training compiles, and costs what it has."""
    config = tiny(seeds=(0,))
    found = ahead.forecast(config, here(jax.device_count()))
    run = make_run(config, 1)
    program = run.lowered((0,)).programs["step"].compile()
    step = found.costs["step"]
    assert step.counted == ahead.count(program.as_text())
    assert step.memory["temporaries"] == program.memory_analysis().temp_size_in_bytes
    state = jax.eval_shape(run.fresh, run.keys((0,)))
    sizes = {"parameters": state.params, "statistics": state.batch_stats}
    for kind, tree in sizes.items():
        assert step.memory[kind] == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    assert found.steps == run.steps and found.hours > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    ["jit", *(pytest.param(n, marks=pytest.mark.nightly) for n in ("shard_map", "pmap"))],
)
def test_each_launcher_sums_the_gradients_of_all_parameters(launcher):
    config = tiny(seeds=(0,), parallel={"launcher": launcher}, batch_size=8)
    step = ahead.forecast(config, here(2)).costs["step"]
    _, size = step.counted.collectives["all-reduce"]
    assert size >= step.memory["parameters"]
    assert "links" in step.bounds


def test_known_sets_need_no_files_and_others_say_what_is_missing():
    config = check_variants(load_config("experiments/imagenet.py"))["default"]
    (name, *_), source = next(iter(ahead.unseen(config, None, ()).items()))
    assert (name, len(source), len(source.classes)) == ("imagenet2012", 1_281_167, 1000)
    mine = config.copy_and_resolve_references()
    mine.data.name = "folder"
    with pytest.raises(UsageError, match="--classes N and --images TRAIN,EVAL"):
        ahead.unseen(mine, None, ())
    mine.data.name = "mnist"  # which lives on the device
    assert [len(s.arrays()["image"]) for s in ahead.unseen(mine, None, ()).values()] == [
        60_000,
        10_000,
    ]
    mine.data.name = "folder"
    held_out = list(ahead.unseen(mine, 7, (90, 10)).values())[1]
    assert (len(held_out), len(held_out.classes)) == (10, 7)


@pytest.mark.parametrize("name", ["v5e", "0xh100", "v9-1", "h1000", "v5e-3", ""])
def test_an_unknown_device_lists_those_that_are_known(name):
    with pytest.raises(UsageError, match=r"h100, v2-8.*v5e-1"):
        ahead.place_of(name)


@pytest.mark.parametrize(("name", "extra"), [("v5e-1", "plan-tpu"), ("8xh100", "plan-gpu")])
def test_a_missing_compiler_is_told_with_its_remedy(name, extra, monkeypatch):
    monkeypatch.setattr(ahead.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UsageError, match=rf"mnv2_jax\[{extra}\]"):
        ahead.place_of(name)


class Elsewhere:
    def __init__(self, platform, capability=None):
        self.platform = platform
        if capability:
            self.compute_capability = capability


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        (Elsewhere("cpu"), "float32"), (Elsewhere("tpu"), "bfloat16"),
        (Elsewhere("gpu", "7.5"), "float32"), (Elsewhere("gpu", "9.0"), "bfloat16"),
        (Elsewhere("gpu", "12.0"), "bfloat16"), (Elsewhere("gpu", "gfx90a"), "bfloat16"),
    ],
)  # fmt: skip
def test_auto_is_bfloat16_where_devices_compute_with_it(device, dtype):
    config = load_config("experiments/imagenet.py")
    settle(config, [device])
    assert config.model.dtype == dtype
    config.model.dtype = "float16"
    settle(config, [device])
    assert config.model.dtype == "float16"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--images", "9"], "--images is '9': give two numbers"),
        (["--variant", "none"], "choose one of linear, relu6"),
        ([], "unknown device 'v5e-1x': did you mean 'v5e-1'?"),
    ],
)
def test_mistakes_of_the_command_line(given, message, capsys):
    command = ["plan", "--config", "experiments/ablate_linear.py", "--on", "v5e-1x", *given]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and message in told


@pytest.mark.nightly
@pytest.mark.skipif(not ahead.importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_the_digits_ablation_compiles_for_colab(capsys):
    assert main(["plan", "--config", "experiments/ablate_linear.py", "--on", "v5e-1"]) == 0
    told = capsys.readouterr().out
    assert "estimated by the compiler, not measured" in told and "cycles" in told
