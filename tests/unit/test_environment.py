"""`make` and the environment that its targets use, with tiny requirements instead of the service's."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The output of the fake program gunicorn: its environment's folder and its arguments.
SERVED = "serves from {folder}: wsgi:app"


def write_wheel(index: Path, name: str, version: str = "1.0", program: str = "pass") -> None:
    """Add a package to an index, which is a folder. The package has a program of the same name."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"import sys\n\n\ndef main():\n    {program}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    file = index / name / f"{name}-{version}-py3-none-any.whl"
    file.parent.mkdir(parents=True, exist_ok=True)
    with (file.parent / "index.html").open("a") as page:
        page.write(f'<a href="{file.name}">{file.name}</a>')
    with zipfile.ZipFile(file, "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(path, text)


class Checkout:
    """The files of this checkout that `make` needs, with other requirements.

    Args:
        index: Folder where pip finds packages by default.
    """

    def __init__(self, folder: Path, index: Path) -> None:
        self.folder = folder
        self.index = index
        folder.mkdir()
        shutil.copy(ROOT / "Makefile", folder)
        shutil.copytree(ROOT / "scripts", folder / "scripts")
        self.require("gunicorn==1.0")

    @property
    def environment(self) -> Path:
        return self.folder / ".venv"

    def require(self, *lines: str) -> None:
        (self.folder / "requirements.txt").write_text("\n".join(lines))

    def run(self, *words: str | Path, **variables: str) -> subprocess.CompletedProcess:
        """Run a program with this index as pip's default, no index for torch, and make's own defaults."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON", "MAKE"))}
        pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": self.index.as_uri()}
        told = {**kept, **pip, "TORCH_INDEX_URL": "", **variables}
        return subprocess.run(words, cwd=self.folder, env=told, capture_output=True, text=True, check=False)

    def make(self, *words: str, **variables: str) -> subprocess.CompletedProcess:
        """Runs make with this Python."""
        return self.run("make", "--silent", f"PYTHON={sys._base_executable}", *words, **variables)

    def assert_serves(self, *words: str, folder: Path | None = None, **variables: str) -> str:
        """Assert that `make run` starts the program of the environment; return the standard error output."""
        done = self.make("run", *words, **variables)
        served = SERVED.format(folder=folder or self.environment)
        assert (done.returncode, done.stdout) == (0, f"{served}\n"), done.stderr
        return done.stderr

    def refusal(self, *words: str, **variables: str) -> str:
        """Return the one error line, without make's own lines."""
        done = self.make(*words, **variables)
        assert done.returncode == 2
        (line,) = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
        return line


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    for version in ("1.0", "2.0"):
        write_wheel(folder, "gunicorn", version, "print(f'serves from {sys.prefix}:', *sys.argv[1:])")
    write_wheel(folder, "torch")
    return folder


@pytest.fixture(scope="module")
def made(index, tmp_path_factory):
    """A checkout with a complete environment."""
    checkout = Checkout(tmp_path_factory.mktemp("made").resolve() / "checkout", index)
    said = checkout.assert_serves()
    assert said == "installing requirements.txt into .venv\n"
    return checkout


@pytest.fixture
def empty(index, tmp_path):
    """A checkout without an environment."""
    return Checkout(tmp_path.resolve() / "checkout", index)


@pytest.fixture
def whole(made, empty):
    """A checkout with a copy of a complete environment."""
    shutil.copytree(made.environment, empty.environment, symlinks=True)
    return empty


def packages(environment: Path) -> Path:
    (folder,) = environment.glob("lib/python3*/site-packages")
    return folder


def test_a_whole_environment_needs_neither_an_index_nor_the_python_that_made_it(made):
    before = {path: path.stat().st_mtime_ns for path in made.environment.rglob("*") if "__pycache__" not in path.parts}
    assert made.assert_serves("PYTHON=no-such-python", PIP_INDEX_URL="http://127.0.0.1:9") == ""
    after = {path: path.stat().st_mtime_ns for path in made.environment.rglob("*") if "__pycache__" not in path.parts}
    assert after == before


@pytest.mark.parametrize(
    "target", re.findall(r"^(\w[\w-]*):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE), ids=lambda name: name
)
def test_every_target_that_runs_something_of_the_environment_mends_it_first(target):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    words = ["make", "-n", target]
    plan = subprocess.run(words, cwd=ROOT, env=kept, capture_output=True, text=True, check=True).stdout
    # `make device-check` is for the packages of another Python, and `make device-packages` for another machine.
    if target in ("help", "clean", "device-check", "device-packages"):
        assert "environment.sh" not in plan
    else:
        file = "requirements.txt" if target in ("run", "dev") else "requirements-dev.txt"
        assert re.match(rf"scripts/environment\.sh \S+ \.venv {file}\n", plan)


def test_a_renamed_checkout_is_mended_without_an_index(whole, tmp_path):
    whole.assert_serves()
    (whole.environment / "bin" / "own").write_text("#!/usr/bin/python3\n")
    whole.folder = whole.folder.rename(tmp_path.resolve() / "a new name")
    said = whole.assert_serves(PIP_INDEX_URL="http://127.0.0.1:9")
    assert said.startswith(f"{whole.environment}: correcting its scripts")
    for script in ("pip", "pip3", f"pip3.{sys.version_info.minor}"):
        subprocess.run([whole.environment / "bin" / script, "--version"], check=True, capture_output=True)
    assert f'"{whole.environment}"' in (whole.environment / "bin" / "activate").read_text()
    assert (whole.environment / "bin" / "own").read_text() == "#!/usr/bin/python3\n"
    assert whole.assert_serves() == ""


def test_an_environment_behind_a_link_is_whole_and_stays_as_it_is(made, empty):
    before = (made.environment / "bin" / "gunicorn").read_bytes()
    empty.environment.symlink_to(made.environment)
    assert empty.assert_serves(folder=made.environment) == ""
    assert (made.environment / "bin" / "gunicorn").read_bytes() == before


def test_a_copied_checkout_runs_itself_and_not_the_one_it_was_copied_from(made, whole):
    before = (made.environment / "bin" / "gunicorn").read_bytes()
    whole.assert_serves()
    assert (made.environment / "bin" / "gunicorn").read_bytes() == before


def test_where_pip_cannot_be_had_one_line_says_so_and_it_is_mended_once_it_can(empty, tmp_path):
    (tmp_path / "ensurepip.py").write_text("raise ImportError('as on Debian without python3-venv')\n")
    without = {"PYTHONPATH": str(tmp_path), "TORCH_INDEX_URL": "http://127.0.0.1:9"}
    for _ in range(2):
        assert empty.refusal("run", **without).startswith(
            ".venv has no pip, since its Python has no ensurepip: install"
        )
    empty.assert_serves()


def test_an_environment_whose_python_is_gone_is_made_anew(whole):
    python = whole.environment / "bin" / "python"
    python.unlink()
    python.symlink_to("/usr/bin/python3.99")
    # Older versions of the script wrote an empty stamp.
    (whole.environment / "bin" / ".installed").write_text("")
    assert whole.assert_serves().startswith(".venv: its Python is gone or of another version; making")


def test_an_environment_of_another_version_of_python_is_made_anew_with_nothing_left_of_it(whole):
    packages(whole.environment).parent.rename(whole.environment / "lib" / "python3.99")
    assert whole.assert_serves().startswith(".venv: its Python is gone or of another version; making")
    assert "python3.99" not in str(packages(whole.environment))


def test_an_interrupted_install_is_finished(whole):
    """Given a pip that was killed before it wrote a package's scripts, then make installs the package again."""
    (whole.environment / "bin" / ".installed").unlink()
    (whole.environment / "bin" / "gunicorn").unlink()
    (packages(whole.environment) / "gunicorn-1.0.dist-info" / "RECORD").unlink()
    (packages(whole.environment) / "~unicorn-1.0.dist-info").mkdir()
    assert "WARNING" not in whole.assert_serves()


def test_requirements_that_changed_are_installed_and_so_are_those_that_a_file_names(whole):
    (whole.folder / "requirements-dev.txt").write_text("-r requirements.txt\n")
    for version, target in (
        ("2.0", "requirements.txt"),
        ("1.0", "requirements-dev.txt"),
        ("2.0", "requirements-dev.txt"),
    ):
        whole.require(f"gunicorn=={version}")
        done = whole.run("scripts/environment.sh", sys.executable, whole.environment, target)
        assert done.returncode == 0, done.stderr
        assert (packages(whole.environment) / f"gunicorn-{version}.dist-info").exists()
    # The stamp from before the change is not right any more.
    assert whole.assert_serves() == "installing requirements.txt into .venv\n"
    assert whole.assert_serves() == ""


def test_an_environment_made_by_hand_gets_pip_and_what_else_it_lacks(empty, tmp_path):
    folder = tmp_path.resolve() / "by-hand"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    empty.assert_serves(f"VENV={folder}", folder=folder)


def test_a_folder_that_is_no_environment_is_never_touched(empty):
    empty.environment.mkdir()
    (empty.environment / "letter.txt").write_text("dear reader")
    assert empty.refusal("run").startswith(".venv is not a virtual environment and stays as it is: name another folder")
    assert empty.refusal("clean").startswith(".venv is not a virtual environment")
    assert (empty.environment / "letter.txt").read_text() == "dear reader"


def test_clean_removes_an_environment_and_an_empty_checkout_is_clean(whole):
    for _ in range(2):
        assert whole.make("clean").returncode == 0
        assert not whole.environment.exists()


def test_a_python_that_is_too_old_or_none_is_one_line(empty, tmp_path):
    old = tmp_path / "python3.6"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for python in (old, "no-such-python"):
        said = empty.refusal("run", f"PYTHON={python}")
        assert said.startswith(f"Python 3.11 or newer is needed, and {python} is not: name one, as in make PYTHON=")
    assert not empty.environment.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no index is asked for torch first")
def test_only_an_index_without_torch_is_said_to_give_none(whole, tmp_path):
    index = tmp_path / "index"
    (index / "torch").mkdir(parents=True)
    whole.require("gunicorn==1.0", "torch==1.0")
    told = f"{index.as_uri()} did not provide torch==1.0; installing the default index's build\n"
    assert told in whole.assert_serves(TORCH_INDEX_URL=index.as_uri())

    whole.require("gunicorn==2.0", "torch==2.0")
    write_wheel(index, "torch", "2.0")
    assert whole.assert_serves(TORCH_INDEX_URL=index.as_uri()) == "installing requirements.txt into .venv\n"

    whole.require("gunicorn==2.0", "torch==1.0")
    write_wheel(index, "torch", "1.0")
    (index / "torch" / "torch-1.0-py3-none-any.whl").write_text("no wheel")
    done = whole.make("run", TORCH_INDEX_URL=index.as_uri())
    assert done.returncode == 2
    assert "torch-1.0-py3-none-any.whl" in done.stderr
    assert "did not provide" not in done.stderr
    # torch came from the default index, which may have another build.
    assert (packages(whole.environment) / "torch-2.0.dist-info").exists()


def test_packages_for_a_device_are_those_that_do_not_come_with_torch(empty, tmp_path):
    index = tmp_path / "index"
    for name in ("flask", "gunicorn", "psutil", "torch", "openvino"):
        write_wheel(index, name)
    empty.index = index
    empty.require("flask==1.0  # the web framework", "gunicorn==1.0", "torch==1.0", "openvino==1.0  # computes")
    (empty.folder / "requirements-dev.txt").write_text("-r requirements.txt\npytest==1.0\npsutil==1.0  # processes\n")
    folder = empty.folder / "build" / "device-packages"
    folder.mkdir(parents=True)
    (folder / "of_an_older_version.py").touch()

    done = empty.make("device-packages", f"PYTHON={sys.executable}")

    assert done.returncode == 0, done.stderr
    assert {file.name for file in folder.glob("*.py")} == {"flask.py", "gunicorn.py", "psutil.py"}
    assert empty.make("clean").returncode == 0
    assert not folder.exists()
