"""One training at a time in a folder, and folders whose last training was killed."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from mnv2_jax import UsageError
from mnv2_jax.lab.train import lock
from mnv2_jax.lab.train.lock import LOCK, Lock

HOLDER = """
import sys, time
from pathlib import Path
from mnv2_jax.lab.train.lock import Lock
with Lock(Path(sys.argv[1])) as lock:
    lock.take()
    print("taken", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], text=True, **pipes)
    assert process.stdout is not None and process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.communicate()


def take(folder):
    with Lock(folder) as own:
        own.take()


def left_by(folder, host, process, began=""):
    (folder / LOCK).write_text(json.dumps([host, process, began]))


@pytest.mark.slow
def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path, holder):
    for _ in range(2):
        with pytest.raises(UsageError, match=f"in use by process {holder.pid} on ") as error:
            take(tmp_path)
        assert "\n" not in str(error.value) and "--workdir" in str(error.value)
    holder.kill()  # which leaves its file behind
    holder.wait()
    assert (tmp_path / LOCK).exists()
    take(tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_one_process_holds_it_once(tmp_path):
    with Lock(tmp_path) as first, Lock(tmp_path) as second:
        first.take()
        first.take()
        with pytest.raises(UsageError, match=f"process {os.getpid()} on"):
            second.take()
    take(tmp_path)


@pytest.mark.slow
def test_where_the_system_knows_no_locks_process_ids_decide(tmp_path, holder, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(UsageError, match=f"in use by process {holder.pid} on "):
        take(tmp_path)
    if sys.platform == "linux":  # the same id, given to another process since
        left_by(tmp_path, socket.gethostname(), holder.pid, "1")
        take(tmp_path)
    left_by(tmp_path, socket.gethostname(), os.getpid())  # in a container, each is process 1
    take(tmp_path)
    left_by(tmp_path, socket.gethostname(), 2**22 + 1)  # more than there can be
    take(tmp_path)


@pytest.mark.parametrize("lives", [True, False])
def test_a_holder_on_another_host_lives_if_its_lock_changes(tmp_path, monkeypatch, capsys, lives):
    left_by(tmp_path, "elsewhere", 7)
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if lives and len(waits) == 9:
            os.utime(tmp_path / LOCK, (1, 1))

    monkeypatch.setattr(time, "sleep", wait)
    if lives:
        with pytest.raises(UsageError, match="in use by process 7 on elsewhere"):
            take(tmp_path)
    else:
        take(tmp_path)
    assert len(waits) == (9 if lives else 4 * lock.BEAT)
    assert "looks whether elsewhere still uses" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 5000, b'["here", "x", 3]'])
def test_a_damaged_lock_is_no_lock(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    take(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / LOCK).mkdir()
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="cannot be used") as error:
            take(folder)
        assert "\n" not in str(error.value)
