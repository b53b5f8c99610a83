"""Temporary files: in memory if no other folder is writable."""

import subprocess
import sys
from pathlib import Path

import pytest

from embedding_api.machine import scratch

ROOT = Path(__file__).parents[2]


def test_heartbeats_are_in_memory():
    assert scratch.heartbeat_folder() == "/dev/shm"


def test_where_only_memory_can_be_written_to_temporary_files_go_there():
    """Given a read-only root, as in some containers, then temporary files, such as torch's, are in /dev/shm."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace can be had here")
    close = "for folder in /tmp /var/tmp; do mount --bind $folder $folder && mount -o remount,bind,ro $folder; done"
    program = f"import sys, tempfile; sys.path.append({str(ROOT)!r}); from embedding_api.machine import scratch; "
    runs = [
        subprocess.run(
            [
                "unshare",
                "--mount",
                "sh",
                "-c",
                f'{close} && exec "$@"',
                "-",
                sys.executable,
                "-P",
                "-c",
                program + code,
            ],
            cwd="/proc",
            capture_output=True,
            text=True,
            check=False,
        )
        for code in ("print(tempfile.gettempdir())", "scratch.prepare(); print(tempfile.gettempdir())")
    ]
    assert "No usable temporary directory" in runs[0].stderr
    assert runs[1].stdout == "/dev/shm\n"
