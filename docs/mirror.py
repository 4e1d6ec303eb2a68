"""Lays the site out like the checkout, so that a link that holds in one holds in the other.

The front page is README.md, and reports are where they are: nothing is written twice. Two pages are
made here: `results/index.md` lists the reports, `docs/reference/cli.md` has the help of every verb.
"""

import contextlib
import io
import os
import sys
from pathlib import Path

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["COLUMNS"] = "100"  # of the help texts

from mnv2_jax.lab import cli

ROOT = Path(__file__).resolve().parents[1]
MIRRORED = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/results/*.md",
    "examples/*.py",
    "notebooks/*.ipynb",
    "results/**/*.md",
    "results/**/*.png",
    "tests/weights/README.md",
)


def on_files(files, config):
    """Puts every page where it is in the checkout, and adds the generated ones."""
    for file in list(files.documentation_pages()):
        files.remove(file)
        if file.abs_src_path:
            name = f"docs/{file.src_uri}"
            files.append(File.generated(config, name, abs_src_path=file.abs_src_path))
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    for pattern in MIRRORED:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    files.append(File.generated(config, "results/index.md", content=list_reports()))
    files.append(File.generated(config, "docs/reference/cli.md", content=list_verbs()))
    return files


def list_reports():
    """Every committed report, by its first line."""
    lines = ["# Results", "", "Each was written by the command it names.", ""]
    for folder in ("results", "benchmarks/results"):
        for path in sorted((ROOT / folder).rglob("*.md")):
            title = path.read_text().partition("\n")[0].lstrip("# ")
            lines.append(f"- [{title}](../{path.relative_to(ROOT).as_posix()})")
    return "\n".join(lines) + "\n"


def list_verbs():
    """The help of the command line, as a page."""
    lines = ["# Command line", "", *_help([])]
    for name in cli.VERBS:
        lines += [f"## mnv2 {name}", "", *_help([name])]
    return "\n".join(lines)


def _help(argv):
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        cli.main([*argv, "--help"])
    return ["```text", said.getvalue(), "```", ""]
