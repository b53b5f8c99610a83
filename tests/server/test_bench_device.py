"""`make device-check` runs on a CPU, where it shows only that it works."""

import json
import subprocess
import sys

import pytest

from tests.server.conftest import ROOT, environment


@pytest.mark.slow
def test_the_check_of_a_device_compares_and_measures_each_precision(tmp_path):
    # This Python has all packages. Those that were unpacked for another one may not fit it.
    words = ["device-check", "OPTIONS=--quick", f"PYTHON={sys.executable}", f"DEVICE_PACKAGES={tmp_path.name}"]
    done = run("make", "--silent", *words, DEVICE="cpu")
    report = json.loads(done.stdout)
    assert (done.returncode, report["broken"]) == (0, []), done.stderr
    assert report["versions"]["torch"]
    assert list(report["precisions"]) == ["float32", "bfloat16"]
    for found in report["precisions"].values():
        assert found["http"]["compared"]["holds"]
        assert {point["at_once"] for point in found["http"]["points"]} == {1, 2}
        for point in found["in_process"]["points"]:
            assert sum(point["shares"].values()) == pytest.approx(1, abs=0.01)
            assert point["texts_per_s"] > 0


def test_a_device_that_is_not_there_breaks_the_check():
    done = run(sys.executable, "-m", "bench.device", DEVICE="mps")
    (line,) = json.loads(done.stdout)["broken"]
    assert "DEVICE=mps: torch finds no such device" in line
    assert done.returncode == 1


def run(*words, **settings) -> subprocess.CompletedProcess:
    return subprocess.run(words, cwd=ROOT, env=environment(**settings), capture_output=True, text=True, check=False)
