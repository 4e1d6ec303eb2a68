"""What others can change is held fast: actions by commit, packages by hash, rights by job."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LOCKS = [ROOT / "requirements-lock.txt", ROOT / ".ci" / "tools.txt"]


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def jobs() -> dict[str, dict]:
    return {f"{p.stem}: {name}": job for p in WORKFLOWS for name, job in read(p)["jobs"].items()}


def steps(key: str) -> list:
    return [step[key] for job in jobs().values() for step in job["steps"] if key in step]


def test_actions_are_pinned_by_commit_with_their_version():
    text = "".join(path.read_text() for path in WORKFLOWS)
    uses = re.findall(r"\buses:\s*(.*)", text)
    assert len(uses) == len(steps("uses")) > 0
    pinned = re.compile(r"([\w-]+/[\w-]+)(?:/[\w-]+)?@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)")
    assert [line for line in uses if not pinned.fullmatch(line)] == []
    found = {pinned.fullmatch(line).groups() for line in uses}
    assert len({action for action, *_ in found}) == len(found), "one action at two commits"


def test_no_workflow_has_rights_of_its_own_and_every_job_states_its():
    assert {
        str(path): read(path)["permissions"] for path in WORKFLOWS if read(path)["permissions"]
    } == {}
    careless = [
        name for name, job in jobs().items() if not {"permissions", "timeout-minutes"} <= job.keys()
    ]
    assert careless == []
    writes = {
        name: sorted(right for right, given in job["permissions"].items() if given != "read")
        for name, job in jobs().items()
    }
    assert {name: rights for name, rights in writes.items() if rights} == {
        "ci: codeql": ["security-events"],
        "release: publish": ["id-token"],
        "release: page": ["attestations", "contents", "id-token"],
    }


def test_jobs_that_may_write_run_none_of_this_repositorys_code_nor_install_any():
    """What writes to the repository or to the index of packages cannot be led by what it builds."""
    for name in ("release: publish", "release: page"):
        text = yaml.safe_dump(jobs()[name]["steps"])
        assert not re.search(r"checkout|setup-python|\bpip\b|\bmake\b", text), name


def test_checkouts_keep_no_credentials():
    for name, job in jobs().items():
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False, name


def test_no_command_is_made_of_what_others_write():
    """Titles, names of branches and the like become text of the shell where `${{ }}` holds them."""
    assert steps("run")
    held = {name for run in steps("run") for name in re.findall(r"\$\{\{\s*(.*?)\s*\}\}", run)}
    assert held <= {"matrix.python"}
    assert all("pull_request_target" not in path.read_text() for path in WORKFLOWS)


def test_workflows_install_from_locks():
    """But the wheel that is tried, whose dependencies are what an installation brings that day."""
    installs = [run for run in steps("run") if re.search(r"\bpip3? +install\b", run)]
    free = [run for run in installs if "--require-hashes" not in run]
    assert free == ['python -m pip install "$(echo dist/*.whl)[train]"']


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_entry_of_a_lock_has_hashes(lock):
    text = lock.read_text().replace("\\\n", "")
    entries = [line for line in text.splitlines() if not line.startswith("#")]
    hashed = re.compile(r"[\w.-]+==\S+( ; [^#]*?)?( +--hash=sha256:[0-9a-f]{64})+")
    assert len(entries) > 40
    assert [entry.partition(" ")[0] for entry in entries if not hashed.fullmatch(entry)] == []


def test_tools_are_locked():
    asked = (line.partition("#")[0] for line in (ROOT / ".ci/tools.in").read_text().splitlines())
    names = {re.match(r"[\w-]+", line).group() for line in asked if line.strip()}
    assert names <= set(re.findall(r"^([\w-]+)==", LOCKS[1].read_text(), re.MULTILINE))
    assert {"build", "cyclonedx-bom", "pip-audit", "twine", "uv"} <= names


def test_updates_are_watched_for_actions_and_for_both_locks():
    config = read(ROOT / ".github" / "dependabot.yml")
    watched = {
        (entry["package-ecosystem"], folder): entry
        for entry in config["updates"]
        for folder in entry.get("directories", [entry.get("directory")])
    }
    assert set(watched) == {("github-actions", "/"), ("pip", "/"), ("pip", "/.ci")}
    for entry in watched.values():
        assert entry["schedule"]["interval"] == "weekly"
        assert [group["patterns"] for group in entry["groups"].values()] == [["*"]]
