"""Each command that a document or a comment shows runs here or in another test, or has a reason why it cannot run.

A command runs here exactly as it is shown, in a copy of the checkout whose environment has the packages of this one.
Only addresses and folders outside of the checkout are replaced.
"""

import configparser
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Container
from importlib import metadata
from pathlib import Path

import pytest

from bench.__main__ import command_line
from embedding_api import settings as config
from tests import documents
from tests.collector import collecting
from tests.commands import program, shown
from tests.server.conftest import MINILM, ROOT, environment

IMAGE = "server/test_dockerfile.py::test_the_image_builds_and_serves_and_stops_on_sigterm"
NGINX = "server/test_nginx.py::test_what_nginx_refuses_is_the_envelope"

# In this order: the last one installs the command memementor-embeddings.
INSTALLS = [
    "pip install -r requirements.txt",
    "pip install -r requirements-dev.txt",
    ".venv/bin/pip install opentelemetry-sdk==1.45.2 opentelemetry-exporter-otlp-proto-http==1.45.2",
    '.venv/bin/pip install ".[tracing]"',
    ".venv/bin/pip install .",
]
# Commands that end, with the beginning of the last line that they print.
ENDS = {
    "make help": "make clean ",
    "make format": "",
    "python3 scripts/count_lines.py": "  ",
    ".venv/bin/python -m bench.parsers": "",
    "cp .env.example .env": "",
    "memementor-embeddings settings > .env.example": "",
    "memementor-embeddings openapi > docs/openapi.json": "",
    "sudo cp deploy/nginx/nginx.conf /etc/nginx/nginx.conf": "",
    "sudo cp deploy/prometheus/prometheus.yml deploy/prometheus/alerts.yml /etc/prometheus/": "",
}
# Commands that need no checkout, also with that beginning.
ENDS_ANYWHERE = {
    "memementor-embeddings settings": '# OTEL_EXPORTER_OTLP_ENDPOINT="',
    "memementor-embeddings check": "127.0.0.1:",
    "memementor-embeddings embed texts.txt": "[",
    "memementor-embeddings openapi": "}",
}
SERVES = ["make run", "make dev", "gunicorn wsgi:app"]
SERVES_WITH_TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 make run"
# Commands that take long. The test only checks that each option and target exists.
PLANNED = [
    "make test",
    "make bench",
    "make soak",
    "make reliability",
    "pytest",
    "pytest -m fault --reliability=docs/reliability.md",
    ".venv/bin/pytest -s tests/server/test_memory.py",
    ".venv/bin/python -m bench",
    ".venv/bin/python -m bench --quick",
    ".venv/bin/python -m bench --only service,ONNX",
    '.venv/bin/python -m bench --workload "x 32"',
    ".venv/bin/python -m bench --workload quality",
    ".venv/bin/python -m bench --workload large",
    ".venv/bin/python -m bench --memory",
    ".venv/bin/python -m bench large",
    ".venv/bin/python -m bench soak",
    ".venv/bin/python -m bench pairs --before ../before",
]
LOADS = [
    "k6 run k6_test.js",
    "BASE_URL=https://embeddings.example.org MODEL=BAAI/bge-m3 API_TOKEN=your-key k6 run k6_test.js",
    "BASE_URL=http://127.0.0.1:8000 API_TOKEN=... DURATION_S=30 MAX_VUS=4 k6 run k6_test.js",
]
RUN_BY = {
    "make device-packages":
        "unit/test_environment.py::test_packages_for_a_device_are_those_that_do_not_come_with_torch",
    "make device-check":
        "server/test_bench_device.py::test_the_check_of_a_device_compares_and_measures_each_precision",
    "make device-check PYTHON=python3":
        "server/test_bench_device.py::test_the_check_of_a_device_compares_and_measures_each_precision",
    "make device-check OPTIONS=--quick":
        "server/test_bench_device.py::test_the_check_of_a_device_compares_and_measures_each_precision",
    "scripts/device_packages.sh PYTHON VERSION FOLDER":
        "unit/test_environment.py::test_packages_for_a_device_are_those_that_do_not_come_with_torch",
    "make check": ".ci/run",
    "make test-all": ".ci/run",
    "docker build -t memementor-embedding-service .": IMAGE,
    "sudo nginx -t": NGINX,
    "promtool check config /etc/prometheus/prometheus.yml":
        "server/test_prometheus.py::test_promtool_finds_no_fault_in_the_rules_and_their_tests_hold",
    "promtool test rules alerts_test.yml":
        "server/test_prometheus.py::test_promtool_finds_no_fault_in_the_rules_and_their_tests_hold",
    "gunicorn -c /path/to/checkout/gunicorn.conf.py wsgi:app":
        "server/test_commands.py::test_gunicorn_starts_in_another_folder_where_it_is_given_the_configuration",
    "scripts/environment.sh PYTHON FOLDER REQUIREMENTS":
        "unit/test_environment.py::test_requirements_that_changed_are_installed_and_so_are_those_that_a_file_names",
    "scripts/install.sh PYTHON REQUIREMENTS": IMAGE,
    "scripts/install.sh": IMAGE,
}  # fmt: skip
CANNOT_RUN = {
    "docker run -p 8000:8000 --env-file .env -v embeddings-cache:/var/cache/huggingface "
    "-v converted-cache:/var/cache/memementor-embeddings memementor-embedding-service": "it needs a Docker engine",
    "docker stop": "it needs a Docker engine",
    "sudo nginx -s reload": "it needs the nginx that the system runs",
    "sudo systemctl reload prometheus": "it needs systemd",
}
RUN_HERE = [*INSTALLS, *ENDS, *ENDS_ANYWHERE, *SERVES, SERVES_WITH_TRACES, *PLANNED, *LOADS]


def test_every_command_that_is_shown_is_run_or_has_a_reason_not_to():
    known = {*RUN_HERE, *RUN_BY, *CANNOT_RUN}
    unknown = {command: place for command, place in shown().items() if command not in known}
    assert unknown == {}, "add it to one of the lists above"
    assert known - shown().keys() == set(), "no document shows it any longer"


@pytest.mark.parametrize(("command", "test"), RUN_BY.items())
def test_what_another_test_runs_is_run_there(command, test):
    file, _, name = test.partition("::")
    text = (ROOT / file if not name else ROOT / "tests" / file).read_text()
    assert re.search(rf"^def {name}\(" if name else rf"^{command}$", text, re.MULTILINE)


@pytest.mark.parametrize("line", [line for block in documents.blocks("dotenv") for line in block.splitlines()])
def test_the_settings_that_are_shown_are_right(line, tmp_path):
    (tmp_path / ".env").write_text(line)
    assert config.load_settings(tmp_path / ".env").supported_models


def systemd_service() -> dict[str, str]:
    """The options of the service in the systemd unit that the manual shows."""
    (unit,) = documents.blocks("ini")
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string(unit)
    return dict(parser["Service"])


def test_the_systemd_unit_starts_the_service_in_its_folder_and_waits_for_its_end():
    service = systemd_service()
    folder, command = service["WorkingDirectory"], service["ExecStart"]
    assert command.removeprefix(f"{folder}/.venv/bin/") in SERVES
    assert int(service["TimeoutStopSec"]) > config.load_settings().graceful_timeout_s


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_no_fault_in_the_unit(checkout, tmp_path):
    (unit,) = documents.blocks("ini")
    file = tmp_path / "memementor.service"
    file.write_text(unit.replace(systemd_service()["WorkingDirectory"], str(checkout)).replace("=memementor", "=root"))
    run(f"systemd-analyze verify --man=no {file}", checkout)


def _copy(folder: Path) -> Path:
    """Copy the checkout, with an environment that has the packages and programs of this one and may be changed."""
    left_out = shutil.ignore_patterns(".git", ".venv", ".env", ".*_cache", ".environments", "__pycache__", "build")
    shutil.copytree(ROOT, folder, ignore=left_out)
    environment = folder / ".venv"
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python3*/site-packages")
    (packages / "these.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    for entry in metadata.entry_points(group="console_scripts"):
        script = environment / "bin" / entry.name
        start = f"import sys\nfrom {entry.module} import {entry.attr}\nsys.exit({entry.attr}())\n"
        script.write_text(f"#!{environment}/bin/python\n{start}")
        script.chmod(0o755)
    for name in ("k6", "ruff"):
        (environment / "bin" / name).symlink_to(Path(sys.prefix, "bin", name))
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout in which the service itself is not installed."""
    return _copy(tmp_path_factory.mktemp("checkout").resolve() / "service")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A copy of the checkout in which every command of INSTALLS has run."""
    folder = _copy(tmp_path_factory.mktemp("installed").resolve() / "service")
    for command in INSTALLS:
        run(command, folder)
    return folder


def variables(checkout: Path) -> dict[str, str]:
    """The variables with which commands find the programs of that copy, and pip finds its packages without an index."""
    pip = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_CONFIG_FILE": os.devnull, "TORCH_INDEX_URL": ""}
    return {**pip, "PATH": f"{checkout / '.venv' / 'bin'}:{os.environ['PATH']}", "K6_NO_USAGE_REPORT": "true"}


def run(
    command: str, checkout: Path, *, folder: Path | None = None, codes: Container[int] = (0,), **settings: str
) -> str:
    """Run a command in a copy of the checkout, or in another folder with that copy's programs; return its output."""
    env = environment(**variables(checkout), **settings)
    words = ["bash", "-c", command]
    done = subprocess.run(words, cwd=folder or checkout, env=env, capture_output=True, text=True, check=False)
    assert done.returncode in codes, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("command", ENDS)
def test_a_command_that_ends_does_what_it_says(command, checkout, installed, tmp_path):
    for name in ("nginx", "prometheus"):
        (tmp_path / "etc" / name).mkdir(parents=True)
    folder = installed if program(command).startswith("memementor") else checkout
    printed = run(command.replace("sudo ", "").replace("/etc/", f"{tmp_path}/etc/"), folder)
    if ENDS[command]:
        assert printed.splitlines()[-1].startswith(ENDS[command])
    for name in re.findall(r"> (\S+)", command):
        assert (folder / name).read_text() == (ROOT / name).read_text()


@pytest.mark.parametrize("command", ENDS_ANYWHERE)
def test_a_command_of_the_installed_package_works_in_any_folder(command, installed, tmp_path):
    (tmp_path / "texts.txt").write_text("a cat\ntax law\n")
    assert run(command, installed, folder=tmp_path).splitlines()[-1].startswith(ENDS_ANYWHERE[command])


@pytest.mark.parametrize("command", SERVES)
def test_a_command_that_serves_answers_with_vectors(command, checkout, launch):
    server = launch(command=["bash", "-c", command], cwd=checkout, **variables(checkout))
    assert len(server.embed("a cat")[0]) == 384


def test_the_command_with_traces_sends_them(checkout, launch):
    with collecting() as collector:
        command = SERVES_WITH_TRACES.replace("http://127.0.0.1:4318", collector.endpoint)
        server = launch(command=["bash", "-c", command], cwd=checkout, **variables(checkout))
        server.embed("a cat")
        server.stop()
        assert collector.requests()


def test_gunicorn_starts_in_another_folder_where_it_is_given_the_configuration(launch, tmp_path):
    server = launch("-c", str(ROOT / "gunicorn.conf.py"), "wsgi:app", cwd=tmp_path)
    assert len(server.embed("a cat")[0]) == 384


@pytest.mark.parametrize("command", PLANNED)
def test_a_command_that_takes_long_has_no_target_or_option_that_is_not_there(command, checkout):
    commands = run(f"{command} --dry-run", checkout).splitlines() if program(command) == "make" else [command]
    for line in commands:
        called, *words = shlex.split(line)
        if words[:2] == ["-m", "bench"]:
            command_line().parse_args(words[2:])
        elif called.endswith("pytest"):
            assert_pytest_takes(tuple(words), checkout)
        else:
            assert called == "scripts/environment.sh"


@functools.cache
def assert_pytest_takes(words: tuple[str, ...], checkout: Path) -> None:
    file = () if words and words[-1].endswith(".py") else ("tests/unit/test_counters.py",)
    # 5: pytest selected no test of that file.
    run(shlex.join(["pytest", *words, "--collect-only", "--no-cov", *file]), checkout, codes=(0, 5))


@pytest.mark.parametrize("command", LOADS)
@pytest.mark.skipif(sys.platform != "linux", reason="the package k6 carries k6 for Linux only")
def test_a_load_test_runs(command, checkout, server):
    here = command.replace("DURATION_S=30", "DURATION_S=0.5").replace("BAAI/bge-m3", MINILM)
    here = re.sub(r"BASE_URL=\S+", f"BASE_URL={server.url}", here)
    run(here, checkout, BASE_URL=server.url, DURATION_S="0.5", MAX_VUS="2", BATCH_SIZE="3")
