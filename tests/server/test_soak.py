"""The soak as CI runs it: one minute, instead of the thirty minutes of `make soak`."""

import re
import subprocess
import sys

import pytest

from tests.server.conftest import ROOT, environment

DURATION_S = 60


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process holds")
@pytest.mark.fault("soak")
def test_a_minute_of_clients_of_all_kinds_leaves_the_service_as_it_is(observed, capsys):
    done = subprocess.run(
        [sys.executable, "-m", "bench", "soak", "--seconds", str(DURATION_S)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    with capsys.disabled():
        print("\n" + done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = re.findall(r"^\| (.*?) *\| (.*?) *\| met +\|$", done.stdout, re.MULTILINE)
    assert outcomes
    observed(f"{DURATION_S} s of load")
    for target, seen in outcomes:
        observed(f"{target.partition(':')[0]}: {seen}")
