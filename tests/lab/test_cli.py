"""The command line in this process: overrides, refusals in one line, and exit statuses."""

import json
import shlex
import subprocess
import sys

import pytest

from mnv2_jax.errors import UsageError
from mnv2_jax.lab import cli
from mnv2_jax.lab.devices import process as host
from mnv2_jax.lab.train import sweep
from mnv2_jax.lab.train.config import load_config

ABLATION = "experiments/ablate_linear.py"


@pytest.fixture(autouse=True)
def process_settings_left_alone(monkeypatch):
    """What a command sets for its process would hold for all tests after it."""
    for name in ("keep_freed_memory", "use_compilation_cache", "split_cpu"):
        monkeypatch.setattr(host, name, lambda *_: None)


@pytest.fixture
def refused(capsys, tmp_path):
    def run(*argv):
        assert cli.main([str(word) for word in argv]) == cli.EXIT_USAGE
        out, err = capsys.readouterr()
        assert not out and len(err.splitlines()) == 1 and err.startswith("mnv2: "), err
        assert "Traceback" not in err
        return err

    return run


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(sweep, "fit", lambda *_: pytest.fail("it trained"))


def test_words_that_are_no_command(refused):
    assert "unknown verb 'trian': did you mean 'train'" in refused("trian")
    assert "the verb 'eval' is called 'evaluate' here" in refused("eval", "--model", "x")
    assert "--help" in refused()
    for words in ((), ("train",), ("--quiet",)):
        assert "--config FILE is missing" in refused(*words, "--config.steps=3")
    assert "--config" in refused("train")
    assert "unrecognized arguments: --wrokdir" in refused("train", "--config", "x", "--wrokdir=y")
    assert "has no value" in refused("--config", ABLATION, "--config.steps")
    assert "goes on where it stopped" in refused("--config", ABLATION, "--resume")
    assert "--config.KEY=VALUE" in refused("--config", ABLATION, "--width", "0.5")
    assert "--config.KEY" not in refused("account", "--widht", "0.5")
    assert "belongs to the verbs train, plan and fit" in refused("account", "--config.steps=3")


def test_a_configuration_is_trained_with_or_without_the_verb(monkeypatch, tmp_path, capsys):
    calls = []

    def run_sweep(config, workdir, command, quiet, tracker):
        assert command[-len(argv) :] == argv
        calls.append((config.steps, workdir, quiet, tracker and tracker()))
        (tmp_path / "report.md").write_text("the report")
        return tmp_path / "report.md"

    monkeypatch.setattr(sweep, "run_sweep", run_sweep)
    argv = ["--config", ABLATION, "--config.steps=7", "--workdir", str(tmp_path), "--quiet"]
    assert cli.main(argv) == cli.main(["train", *argv]) == 0
    assert calls == [(7, tmp_path, True, None)] * 2
    mine = "from experiments.ablate_linear import get_config\ntracker = lambda: 'mine'\n"
    (tmp_path / "mine.py").write_text(mine)
    argv[1] = str(tmp_path / "mine.py")
    assert cli.main(argv) == 0 and calls[2:] == [(7, tmp_path, True, "mine")]
    assert "the report" in capsys.readouterr().out
    (tmp_path / "results.json").write_text('{"metric": "accuracy"}')
    monkeypatch.setattr(sweep, "run_sweep", lambda *_: tmp_path / "report.md")
    assert cli.main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"metric": "accuracy"}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle.width=1", "did you mean"),
        ("steps=many", "'steps' is given 'many': it takes an integer"),
        ("steps=1e400", "it takes an integer"),
        ("steps=-5", "steps is -5: it must be between 0"),
        ("optimizer.learning_rate=1e400", "learning_rate is inf"),
        ("optimizer.learning_rate=nan", "it takes a number"),
        ("optimizer.name=adam", "unknown optimizer.name 'adam': did you mean 'adamw'"),
        ("data.name=digitz", "unknown data set 'digitz': did you mean 'digits'"),
        ("data.name=tfds:not_prepared", "is not prepared in"),
        ("sweep.seeds=(1,1)", "each once"),
        ("sweep.seeds=()", "at least one integer"),
        ("sweep.reference=relu", "sweep.reference 'relu'"),
        ("parallel.launcher=pjit", "unknown parallel.launcher"),
        ("init.model=/nowhere", "is no saved model"),
        ("model.spec=huge", "unknown model.spec 'huge'"),
    ],
)
def test_overrides_that_cannot_be_used(refused, tmp_path, override, message):
    workdir = tmp_path / "new"
    assert message in refused("--config", ABLATION, f"--config.{override}", "--workdir", workdir)
    assert message in refused("--workdir", workdir, "--config", ABLATION, f"--config.{override}")
    assert not workdir.exists()


@pytest.mark.usefixtures("no_training")
def test_an_override_of_what_a_variant_sets_itself_is_no_silent_loss(refused):
    file, override = "experiments/ablate_sandglass.py", "optimizer.learning_rate=0.3"
    said = refused("--config", file, f"--config.{override}")
    own = "sweep.variants.sandglass.optimizer.learning_rate"
    assert "does not reach the variant 'sandglass'" in said and f"--config.{own}=VALUE" in said
    config = load_config(file, [override, f"{own}=0.4"])
    rates = [c.optimizer.learning_rate for c in sweep.check_variants(config).values()]
    assert rates == [0.3, 0.4]


@pytest.mark.usefixtures("no_training")
def test_configurations_that_cannot_be_used(refused, tmp_path):
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    (tmp_path / "other.py").write_text("x = 1\n")
    assert "SyntaxError" in refused("--config", tmp_path / "broken.py")
    assert "defines no function get_config" in refused("--config", tmp_path / "other.py")
    assert "did you mean experiments/ablate_linear.py" in refused(
        "--config", "experiments/ablate_lineer.py"
    )
    assert "did you mean experiments/ablate_linear.py" in refused("--config", "ablate_linear")
    assert "unknown preset 'x'" in refused("--config", f"{ABLATION}:x")
    assert "unknown preset 'x'" in refused("train", f"{ABLATION}:x")
    for words in (("train",), ("train", ABLATION, "--config", ABLATION)):
        assert "train takes one experiment, such as --config" in refused(*words)
    assert f"--config.data.root={tmp_path}" in refused("train", tmp_path)
    assert "goes on where it stopped" in refused("train", "--resume", "runs/x")
    (tmp_path / "own.py").write_text(
        "from ml_collections import ConfigDict\nget_config = lambda: ConfigDict({'name': 'own'})"
    )
    assert "has no key 'title': let its get_config begin with base()" in refused(
        "--config", tmp_path / "own.py"
    )
    for name, key in (("finetune.py:head", "init.model"), ("distill.py", "teacher.model")):
        assert f"needs {key}: give --config.{key}=VALUE" in refused(
            "--config", f"experiments/{name}"
        )


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=~/own.py"], "'{home}/own.py' is not a file"),
        (["--config", "~nobody-here/own.py"], "'~nobody-here/own.py' is of no user here"),
        (["--config", ABLATION, "--config.data.name=folder", "--config.data.root=~/x"],
         "{home}/x has no images"),
        (["--config", ABLATION, "--config.data.name=folder", "--config.data.root="],
         "the root of the data is empty"),
        (["--config", ABLATION, "--config.data.name=folder", "--config.data.root=~nobody-here"],
         "is of no user here"),
        (["--config", ABLATION, "--config.data.name=tfds:mnist", "--config.data.root=~/x"],
         "{home}/x"),
        (["--config", "experiments/finetune.py", "--config.init.model=~/x"], "'{home}/x' is no"),
        (["--config", ABLATION, "--workdir="], "the --workdir is empty"),
        (["--config", ABLATION, "--workdir", "caf\udce9"], "is not UTF-8, which checkpoints need"),
        (["verify", "~/x"], "'{home}/x' is not the folder of a training"),
        (["verify", ""], "the folder is empty"),
        (["predict", "--model=~/x", "a.png"], "'{home}/x' is no saved model"),
        (["predict", "--model=", "a.png"], "the folder of the model is empty"),
        (["paper", "--runs=~/x"], "'{home}/x' is not a folder"),
        (["predict", "--model", ".", "--code=~/own.py", "a.png"],
         "--code '{home}/own.py' is not a file"),
    ],
)  # fmt: skip
def test_paths_as_people_write_them(refused, tmp_path, monkeypatch, words, message):
    monkeypatch.setenv("HOME", str(tmp_path))
    if "finetune" in str(words):
        words += ["--config.data.name=digits", "--config.data.resolution=8"]
        words += ["--config.data.train.crop=none", "--config.data.eval.crop=none"]
    assert message.format(home=tmp_path) in refused(*words)


@pytest.mark.usefixtures("no_training")
def test_workdirs_that_cannot_be_used(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "make_run", lambda *_: None)  # nothing is wrong with the rest
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file/below", "/proc/no/such", "x" * 300):
        text = refused("--config", ABLATION, "--quiet", "--workdir", place)
        assert "cannot be" in text and str(place)[:40] in text


@pytest.mark.parametrize(
    "words",
    [
        ["export", "--model", "m", "--to", "onnx", "{}"],
        ["export-weights", "--model", "m", "--to", "timm", "{}"],
        ["evaluate", "--model", "m", "--data", "digits", "--out", "{}"],
        ["evaluate", "--model", "m", "--data", "digits", "--examples", "{}"],
        ["import", "gone.pth", "{}"],
        ["paper", "--model", "m", "--out", "{}"],
    ],
    ids=lambda words: " ".join((words[0], words[-2])),
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(
    refused, tmp_path, words
):
    """What is read is missing in all of these, which would be told otherwise."""
    (tmp_path / "file").write_text("in the way")
    place = tmp_path / "file/below"
    text = refused(*(word.format(place) for word in words))
    assert f"{str(place)!r} cannot be written: {str(tmp_path / 'file')!r} is not a folder" in text


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (UsageError("what to do."), 2, "mnv2: what to do."),
        (KeyboardInterrupt(), 130, "mnv2: interrupted"),
        (OSError(28, "No space left", "runs/a\nb"), 2, r"mnv2: 'runs/a\nb': No space left."),
        (OSError("device is gone"), 2, "mnv2: device is gone."),
    ],
)
def test_exit_statuses(monkeypatch, capsys, raised, status, line):
    def run(*_):
        raise raised

    monkeypatch.setattr(sweep, "run_sweep", run)
    assert cli.main(["--config", ABLATION]) == status
    assert capsys.readouterr().err.strip() == line


def test_the_only_model_of_a_training_is_found(refused, tmp_path, capsys):
    def make(seed):
        folder = tmp_path / "default" / f"seed_{seed}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"")
        return str(folder)

    parse = cli.make_parser().parse_args
    only = make(0)
    assert parse(["predict", "--model", str(tmp_path), "x.png"]).model == only
    assert parse(["predict", "--model", only, "x.png"]).model == only
    other = make(1)
    text = refused("predict", "--model", tmp_path, "x.png")
    assert "holds 2 models" in text and only in text and other in text


def test_help_lists_every_verb_and_its_examples_parse(capsys):
    for argv in (["--help"], *([name, "--help"] for name in cli.VERBS)):
        with pytest.raises(SystemExit) as end:
            cli.main(argv)
        assert end.value.code == 0
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 120
        assert argv == ["--help"] or f"mnv2 {argv[0]}" in text.partition("examples:")[2]
        assert argv != ["--help"] or all(f"  {name} " in text for name in cli.VERBS)
    for name, verb in cli.VERBS.items():
        assert verb.examples
        for example in verb.examples:
            program, *words = shlex.split(example)
            rest, _ = cli.split_overrides(words)
            arguments = cli.make_parser().parse_args(rest)
            assert program == "mnv2" and words[0] == name and arguments.run is verb.run


def test_version_and_completion(capsys):
    for argv, text in (
        (["--version"], "mnv2_jax 0."),
        (["--print-completion", "bash"], "--output-stride"),
        (["--print-completion", "zsh"], "#compdef mnv2"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(argv)
        assert end.value.code == 0 and text in capsys.readouterr().out


def test_completion_without_its_package(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "pip install 'mnv2_jax[completion]'" in refused("--print-completion", "bash")


@pytest.mark.slow
def test_help_needs_no_accelerator_library():
    """It answers at once: nothing heavy is imported for it."""
    code = (
        "import sys; from mnv2_jax.lab import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('orbax.checkpoint', 'matplotlib', 'grain') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]" and "train" in out.stdout
