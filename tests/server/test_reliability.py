"""docs/reliability.md says of each fault test what became of it, and of all that there are."""

import subprocess
import sys

import pytest

from tests.conftest import CACHE_DIR
from tests.server.conftest import ROOT, environment
from tests.server.reliability import BREAK, FAULTS, NOTHING

COMMITTED = ROOT / "docs" / "reliability.md"


def run(*arguments):
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


def rows(file):
    """The table's rows by key of FAULTS: fault, what must happen, what happened, tests."""
    cells = [line.strip("| ").split(" | ") for line in file.read_text().splitlines() if line.startswith("| ")]
    _header, _dashes, *rows = [[*row, ""][:4] for row in cells]
    return dict(zip(FAULTS, rows, strict=True))


def test_the_document_has_the_rows_of_all_fault_tests(tmp_path):
    """Whoever adds a test for a fault, or renames one, runs `make reliability` before it is committed."""
    now = tmp_path / "now.md"
    done = run("tests/server", "--collect-only", "-q", "--reliability", now)
    assert done.returncode == 0, done.stdout
    for key, (fault, must, happened, tests) in rows(COMMITTED).items():
        assert [fault, must, tests] == [*FAULTS[key], rows(now)[key][3]]
        if tests:
            assert not NOTHING & set(happened.split(BREAK)), f"{key}: {happened}"
            assert "**failed**" not in happened, f"{key}: {happened}"


TESTS = """
import pytest

@pytest.mark.fault("overload")
@pytest.mark.parametrize("n", [3, 4])
def test_good(n, observed):
    observed(f"{n} requests | none lost")

@pytest.mark.fault("deadline")
def test_silent():
    pass

@pytest.mark.fault("deadline")
@pytest.mark.parametrize("n", [1, 2])
def test_bad(n, observed):
    observed("one lost")
    assert n == 1

@pytest.mark.fault("kill")
@pytest.mark.fault("hang")
def test_elsewhere():
    pass

@pytest.mark.fault("sighup")
@pytest.mark.skip
def test_skipped():
    pass

@pytest.fixture
def broken():
    yield
    raise RuntimeError

@pytest.mark.fault("start")
def test_broken_afterwards(broken):
    pass
"""


def test_each_fault_tells_what_its_tests_saw(tmp_path):
    file, table = tmp_path / "test_some.py", tmp_path / "table.md"
    file.write_text(TESTS)
    done = run(file, "-p", "tests.server.reliability", "--reliability", table, "-k", "not elsewhere")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert {key: row[2:] for key, row in rows(table).items()} == {
        **{key: ["no test", ""] for key in FAULTS},
        "overload": [r"3 requests \| none lost; 4 requests \| none lost", "`test_some.py::test_good`"],
        "deadline": [
            "as it must<br>**failed** (1 of 2): one lost",
            "`test_some.py::test_silent`<br>`test_some.py::test_bad`",
        ],
        "hang": ["not run", "`test_some.py::test_elsewhere`"],
        "kill": ["not run", "`test_some.py::test_elsewhere`"],
        "sighup": ["skipped", "`test_some.py::test_skipped`"],
        "start": ["**failed** (1 of 1)", "`test_some.py::test_broken_afterwards`"],
    }
    (left_out,) = (line for line in table.read_text().splitlines() if line.startswith("**Not the whole"))
    assert "hang, kill" in left_out
    assert "overload" not in left_out


def test_the_cache_is_that_of_the_outer_tests_and_outlives_the_inner(tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text(f"import os\n\ndef test_same():\n    assert os.environ['CACHE_DIR'] == {str(CACHE_DIR)!r}\n")
    done = run(file, "-p", "tests.conftest")
    assert done.returncode == 0, done.stdout
    assert CACHE_DIR.is_dir()


def test_a_fault_that_nobody_knows_is_refused(tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text(TESTS.replace("overload", "overlord"))
    done = run(file, "-p", "tests.server.reliability")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no fault is called 'overlord'" in done.stderr
