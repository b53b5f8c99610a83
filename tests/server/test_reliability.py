"""docs/reliability.md has a section for each fault, with the outcome of each of its tests."""

import re
import subprocess
import sys

import pytest

from tests.conftest import CACHE_DIR
from tests.server.conftest import ROOT, environment
from tests.server.reliability import FAULTS, NO_TEST

COMMITTED = ROOT / "docs" / "reliability.md"


def run(*arguments):
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


def sections(file):
    """Return the sections by key of FAULTS: title, fault, what is required, and what was observed."""
    found = [part.split("\n\n", 4) for part in file.read_text().split("\n## ")[1:]]
    assert {tuple(parts[3:4]) for parts in found} == {("**Observed:**",)}
    texts = [[title, *(part.partition("** ")[2] for part in parts), last] for title, *parts, _, last in found]
    return dict(zip(FAULTS, texts, strict=True))


def names_in(observed):
    return re.findall(r"^- `(.*?)`", observed, re.MULTILINE)


def test_the_document_has_the_sections_of_all_fault_tests(tmp_path):
    """If this fails because you added or renamed a fault test, run `make reliability` before you commit."""
    now = tmp_path / "now.md"
    done = run("tests/server", "--collect-only", "-q", "--reliability", now)
    assert done.returncode == 0, done.stdout
    for key, (title, fault, required, observed) in sections(COMMITTED).items():
        assert [title, fault, required] == [*FAULTS[key]]
        assert names_in(observed) == names_in(sections(now)[key][3])
        assert not re.search(r"^- `.*?`: (not run|skipped|\*\*failed)", observed, re.MULTILINE), f"{key}: {observed}"
    assert "**Incomplete" not in COMMITTED.read_text()


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
    file, page = tmp_path / "test_some.py", tmp_path / "page.md"
    file.write_text(TESTS)
    done = run(file, "-p", "tests.server.reliability", "--reliability", page, "-k", "not elsewhere")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert {key: parts[3].strip() for key, parts in sections(page).items()} == {
        **dict.fromkeys(FAULTS, NO_TEST),
        "overload": "- `test_some.py::test_good`\n    - 3 requests | none lost\n    - 4 requests | none lost",
        "deadline": "- `test_some.py::test_silent`: as required\n"
        "- `test_some.py::test_bad`: **failed** (1 of 2)\n    - one lost",
        "hang": "- `test_some.py::test_elsewhere`: not run",
        "kill": "- `test_some.py::test_elsewhere`: not run",
        "sighup": "- `test_some.py::test_skipped`: skipped",
        "start": "- `test_some.py::test_broken_afterwards`: **failed** (1 of 1)",
    }
    (incomplete,) = (line for line in page.read_text().splitlines() if line.startswith("**Incomplete"))
    for key, fault in FAULTS.items():
        assert (fault.title in incomplete) == (key not in {"overload", "deadline", "start"})


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
