"""The notebook: kept without outputs, and run from its first cell to its last in a few steps."""

import os
import subprocess
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "colab.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture
def execute(monkeypatch, tmp_path):
    """Executes cells in a kernel of their own, away from the settings of the tests."""
    for name in [name for name in os.environ if name.startswith(("JAX_", "XLA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # it compiles more than it computes
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    # What it would find with a GPU would be installed.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(notebook, cwd):
        from nbclient import NotebookClient

        client = NotebookClient(
            notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(cwd)}}
        )
        client.execute()
        return [
            "".join(output.get("text", "") for output in cell.outputs)
            for cell in code_cells(notebook)
        ]

    return run


def test_it_is_kept_clean(notebook):
    nbformat.validate(notebook)
    assert len(code_cells(notebook)) > 5
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))


def test_the_address_is_in_one_place(notebook):
    places = [i for i, cell in enumerate(notebook.cells) if "OWNER/mnv2_jax" in cell.source]
    assert places == [1] and notebook.cells[1].source.count("OWNER") == 1


@pytest.mark.nightly
@pytest.mark.slow
def test_away_from_a_checkout_it_clones_one(notebook, execute, tmp_path, monkeypatch):
    monkeypatch.setenv("MNV2_NOTEBOOK_SHORT", str(tmp_path / "out"))
    origin = tmp_path / "origin"
    subprocess.run(["git", "init", "-q", origin], check=True)
    for name in ("mnv2_jax/version.py", "notebooks/set_up.py", "requirements.txt"):
        (origin / name).parent.mkdir(exist_ok=True)
        (origin / name).write_bytes((ROOT / name).read_bytes())
    git = ("git", "-C", origin, "-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    place = tmp_path / "elsewhere"
    place.mkdir()
    notebook.cells = notebook.cells[:5]

    with pytest.raises(Exception, match="put the address of the project into REPOSITORY"):
        execute(notebook, place)
    cell = notebook.cells[1]
    cell.source = cell.source.replace("https://github.com/OWNER/mnv2_jax", f"file://{origin}")
    *_, said = execute(notebook, place)
    assert f"the project is in {place / 'mnv2_jax'}" in said
    assert (place / "mnv2_jax" / "mnv2_jax" / "version.py").is_file()


@pytest.mark.nightly
def test_it_runs_to_the_end(notebook, execute, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setenv("MNV2_NOTEBOOK_SHORT", str(out))
    said = "\n".join(execute(notebook, NOTEBOOK.parent))
    assert f"the project is in {ROOT}, results go to {out}, JAX computes on: cpu" in said
    assert "pip install" not in said
    assert (out / "ablate_linear" / "curves.png").stat().st_size > 10_000
    assert "train/sneaker" in said and "val/bag" in said
    assert "run by JAX" in said and (out / "model.stablehlo").stat().st_size > 10_000
    # Three classes are told apart far better than by chance after a minute.
    report = (out / "finetuned" / "report.md").read_text()
    accuracy = float(report.split("| default |")[1].split("|")[1])
    assert accuracy > 60, report
    assert "looks like bag" in said
    pictures = [o for cell in code_cells(notebook) for o in cell.outputs if "data" in o]
    assert len(pictures) == 2 and all("image/png" in o["data"] for o in pictures)
