"""The Dockerfile, read and run step by step without Docker, below a temporary folder.

- The build moves each absolute path in it below one root, except /dev. Each stage begins with an empty root, and the
  build renames the root of the stage before. So /opt/venv is the same path in all stages, as it must be: the scripts of
  a virtual environment contain the path of their interpreter.
- The base image is this Python, as /usr/local/bin/python, and this machine's /usr/bin.
- `useradd`, `chown`, USER, VOLUME and EXPOSE need root or Docker. The tests read them and do not run them.
- RUN has this process's environment variables, which may tell pip where packages are. The service has only the image's.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

from tests.server.conftest import MINILM, ROOT, free_port, request

# A slash that begins a word. The slashes after `http:` and `python3*` do not.
ABSOLUTE_PATH = re.compile(r"""(?<![^\s"'=:(<>])/(?!dev/)(?=\w)""")
INSTALLING = {"requirements.txt", "scripts/install.sh"}
# In seconds. The imports may read from a cold disk of a busy machine.
READY_WITHIN_S = 180
# The image had 1.11 GB without OpenVINO, and OpenVINO has 0.19 GB. A torch with CUDA adds several GB.
MAX_IMAGE_BYTES = 1.4e9


class Step(NamedTuple):
    """One instruction: `COPY --from=a b c` is word COPY, flags {"from": "a"} and rest "b c"."""

    word: str
    flags: dict[str, str]
    rest: str

    @property
    def command(self) -> list[str]:
        """The command's words, as the kernel gets them. A command that is not a JSON array runs in a shell."""
        text = self.rest.removeprefix("CMD ") if self.word == "HEALTHCHECK" else self.rest
        return json.loads(text) if text.startswith("[") else ["/bin/sh", "-c", text]


def read_steps() -> list[Step]:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))
    steps = []
    for line in text.replace("\\\n", "").splitlines():
        word, _, rest = line.partition(" ")
        flags = {}
        while match := re.match(r"\s*--([\w-]+)=(\S+)\s+", rest):
            flags[match[1]] = match[2]
            rest = rest[match.end() :]
        steps.append(Step(word, flags, rest.strip()))
    return steps


def read_stages() -> list[list[Step]]:
    steps = read_steps()
    starts = [index for index, step in enumerate(steps) if step.word == "FROM"]
    return [steps[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


def is_ignored(path: str) -> bool:
    """Return True if .dockerignore excludes a path: the last pattern that matches the path or a parent decides."""
    ignored = False
    paths = [path, *map(str, PurePosixPath(path).parents)]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if line and not line.startswith("#") and any(re.fullmatch(pattern, each) for each in paths):
            ignored = not line.startswith("!")
    return ignored


def copied(step: Step) -> dict[str, str]:
    """Return the files that a COPY copies: path in the build context to path in the image."""
    *sources, target = step.rest.split()
    files = {}
    for source in sources:
        for file in sorted((ROOT / source).rglob("*")) if (ROOT / source).is_dir() else [ROOT / source]:
            path = str(file.relative_to(ROOT))
            if file.is_file() and not is_ignored(path):
                is_into = target.endswith("/") or (ROOT / source).is_dir()
                below = file.relative_to(ROOT / source) if (ROOT / source).is_dir() else file.name
                files[path] = str(PurePosixPath(target, below)) if is_into else target
        assert any(Path(path).is_relative_to(source) for path in files), f"nothing to copy for {source}"
    return files


class Build:
    """Runs the Dockerfile. Then `root` is the image, `env` its environment, and `workdir` the working folder of CMD."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.commands: dict[str, list[str]] = {}
        for step in read_steps():
            getattr(self, f"_{step.word.lower()}")(step)

    def run(self, word: str, **overrides: str) -> subprocess.Popen:
        """Start CMD or HEALTHCHECK in the image, with variables that a user would give to Docker."""
        return subprocess.Popen(self.commands[word], cwd=self.workdir, env=self.env | overrides)

    def _inside(self, text: str) -> str:
        return ABSOLUTE_PATH.sub(f"{self.root}/", text)

    def _from(self, step: Step) -> None:
        if self.root.exists():
            self.root.rename(self.folder / self.stage)
        self.stage = step.rest.split()[-1]
        python = self.root / "usr/local/bin/python"
        python.parent.mkdir(parents=True)
        python.symlink_to(Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}"))
        self.env = {"PATH": f"{python.parent}:/usr/bin:/bin"}
        self.workdir = self.root

    def _env(self, step: Step) -> None:
        pairs = dict(pair.split("=", 1) for pair in shlex.split(step.rest))
        self.env |= {name: string.Template(self._inside(text)).substitute(self.env) for name, text in pairs.items()}

    def _arg(self, step: Step) -> None:
        name, _, default = step.rest.partition("=")
        self.env[name] = default

    def _workdir(self, step: Step) -> None:
        self.workdir = self.workdir / self._inside(step.rest)
        self.workdir.mkdir(parents=True, exist_ok=True)

    def _copy(self, step: Step) -> None:
        if "from" in step.flags:
            source, target = step.rest.split()
            made = Path(source.replace("/", f"{self.folder / step.flags['from']}/", 1))
            # Hard links instead of copies, because the environment is large.
            shutil.copytree(made, self._inside(target), symlinks=True, copy_function=os.link)
            return
        for path, target in copied(step).items():
            destination = self.workdir / self._inside(target)
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, destination)

    def _run(self, step: Step) -> None:
        program = f"useradd() {{ :; }}; chown() {{ :; }}; {self._inside(step.rest)}"
        # Without the variables of this Python: PYTHONDONTWRITEBYTECODE, for example, must not change the image.
        outside = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
        subprocess.run(["/bin/sh", "-c", program], cwd=self.workdir, env=outside | self.env, check=True)

    def _cmd(self, step: Step) -> None:
        self.commands[step.word] = [self._inside(word) for word in step.command]

    _healthcheck = _cmd

    def _expose(self, step: Step) -> None:
        pass

    _user = _volume = _expose


@pytest.fixture
def image():
    # Not tmp_path: pytest keeps the folders of the last three runs, and the image is large.
    with tempfile.TemporaryDirectory() as folder:
        yield Build(Path(folder).resolve())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_image_builds_and_serves_and_stops_on_sigterm(image):
    port = free_port()
    # Quotes, because `docker run --env-file` does not remove them. A health check through this proxy would fail.
    told = {"HOST": "127.0.0.1", "PORT": f'"{port}"', "http_proxy": "http://127.0.0.1:9"}
    with image.run("CMD", **told) as server:
        try:
            deadline = time.monotonic() + READY_WITHIN_S
            while image.run("HEALTHCHECK", **told).wait(timeout=30) != 0:
                assert time.monotonic() < deadline, "HEALTHCHECK never succeeded"
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pytest.fail(f"CMD ended with {server.wait(timeout=0.5)}")
            body = json.dumps({"model": MINILM, "input": "Hello"})
            _, answer, _ = request(port, "POST", "/v1/embeddings", body)
            assert len(answer["data"][0]["embedding"]) == 384
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()
    assert image.run("HEALTHCHECK", **told).wait(timeout=30) == 1
    n_bytes = sum(path.lstat().st_size for path in image.root.rglob("*") if not path.is_symlink())
    assert n_bytes < MAX_IMAGE_BYTES


def test_the_service_does_not_run_as_root():
    users = [step.rest for step in read_stages()[-1] if step.word == "USER"]
    assert users
    assert users[-1].split(":")[0] not in ("root", "0")


def test_no_secret_is_an_argument_or_variable_of_the_image():
    declared = " ".join(step.rest for step in read_steps() if step.word in ("ARG", "ENV"))
    names = re.findall(r"(?:^|\s)(\w+)(?==|\s|$)", declared)
    assert "HF_HOME" in names
    assert [name for name in names if re.search("KEY|TOKEN|SECRET|PASSWORD", name, re.IGNORECASE)] == []


@pytest.mark.parametrize(
    "path",
    [".env", ".env.production", "embedding_api/.env", ".git/config", "tests/server/test_dockerfile.py",
     ".venv/bin/python", "embedding_api/web/__pycache__/auth.cpython-311.pyc"],
)  # fmt: skip
def test_secrets_history_tests_and_leftovers_do_not_even_reach_the_build(path):
    assert is_ignored(path)


def test_the_image_holds_the_whole_service_and_nothing_else():
    copies = [step for step in read_stages()[-1] if step.word == "COPY" and "from" not in step.flags]
    taken = {path: target for step in copies for path, target in copied(step).items()}
    files = (ROOT / "embedding_api").rglob("*.*")
    package = {str(file.relative_to(ROOT)) for file in files if file.suffix in (".py", ".txt", ".html", ".js")}
    assert taken == {path: path for path in {"wsgi.py", "gunicorn.conf.py"} | package}


def test_a_change_of_code_reuses_the_layers_that_install():
    first, last = read_stages()
    assert any("install.sh" in step.rest for step in first if step.word == "RUN")
    assert {path for step in first if step.word in ("COPY", "ADD") for path in copied(step)} == INSTALLING
    later = last[[step.word == "COPY" and "from" not in step.flags for step in last].index(True) :]
    assert [step for step in later if step.word == "RUN" or "from" in step.flags] == []


def test_what_traces_need_can_be_built_in():
    (argument,) = [step.rest for step in read_steps() if step.word == "ARG"]
    assert argument == "EXTRA_PACKAGES="
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for file in ("Dockerfile", "docs/running.md"):
        assert f'`--build-arg EXTRA_PACKAGES="{" ".join(extras["tracing"])}"`' in (ROOT / file).read_text()


def test_both_stages_have_the_same_public_python():
    assert {stage[0].rest.split()[0] for stage in read_stages()} == {"python:3.11-slim"}


def test_the_service_listens_on_every_interface_of_its_container():
    variables = " ".join(step.rest for step in read_stages()[-1] if step.word == "ENV")
    assert {"HOST=0.0.0.0", "PORT=8000"} <= set(shlex.split(variables))


def test_the_caches_are_volumes_that_their_user_owned_before():
    last = read_stages()[-1]
    variables = " ".join(step.rest for step in last if step.word == "ENV")
    told = dict(pair.split("=", 1) for pair in shlex.split(variables))
    words = [step.word for step in last]
    volumes, user = (last[words.index(word)].rest for word in ("VOLUME", "USER"))
    assert volumes.split() == [told["HF_HOME"], told["CACHE_DIR"]]
    # Docker discards changes to a volume's folder after VOLUME.
    for volume in volumes.split():
        assert any(f"chown {user} {volume}" in step.rest for step in last[: words.index("VOLUME")])


def test_no_shell_stands_between_a_signal_and_gunicorn():
    assert [step.command[0] for step in read_stages()[-1] if step.word in ("CMD", "ENTRYPOINT")] == ["gunicorn"]


def test_loading_models_does_not_count_as_unhealthy():
    (check,) = [step for step in read_stages()[-1] if step.word == "HEALTHCHECK"]
    assert int(check.flags["start-period"].removesuffix("s")) >= 120
