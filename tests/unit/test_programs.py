"""Separate programs: their environment, and the result of each way in which they can end."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedding_api.errors import ScarcityError
from embedding_api.machine import programs
from embedding_api.settings import Settings

ROOT = Path(__file__).parents[2]


def ask(code, **options):
    return programs.ask(["-c", code], environment=programs.environment(()), **options)


def test_the_answer_is_the_last_line_whatever_was_written_before():
    code = r"""import sys; sys.stdout.buffer.write(b'\xff\n{"a": "\xc3\xa9"}\n'); sys.stderr.buffer.write(b'\xff')"""
    assert ask(code, is_quiet=True) == {"a": "é"}


@pytest.mark.parametrize(("is_quiet", "level"), [(True, "DEBUG"), (False, "WARNING")])
def test_each_line_of_stderr_is_logged_once(caplog, is_quiet, level):
    caplog.set_level("DEBUG", programs.__name__)
    # The program writes more to both streams than a pipe holds.
    code = "import sys; [print('x' * 9999, file=f) for f in (sys.stdout, sys.stderr) for _ in range(9)]; print('{}')"
    assert ask(f"{code}; print('last\\n\\nline', end='', file=sys.stderr)", is_quiet=is_quiet) == {}
    assert {line.levelname for line in caplog.records} == {level}
    assert caplog.messages == ["-c: " + "x" * 9999, "-c: last", "-c: line"]


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("import os; os.kill(os.getpid(), 9)", "was ended by signal 9, most likely for want of memory; free some"),
        ("import os; os.kill(os.getpid(), 15)", "was ended by signal 15"),
        ("raise SystemExit('no space')", "ended with code 1 (no space)"),
        ("print('[]')", "ended with code 0 (no message)"),
    ],
)
def test_a_program_without_a_result_is_reported_by_its_end(code, end):
    assert ask(code, is_quiet=True)["end"].startswith(end)


def test_a_program_that_gets_no_process_is_reported_with_the_cure(monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(programs.subprocess, "Popen", refuse)
    with pytest.raises(ScarcityError, match=r"refuses a process for -c; raise the limit on processes.*ulimit -u"):
        ask("{}")


def test_a_program_runs_in_its_working_folder(tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    assert ask("import json, os; print(json.dumps({'folder': os.getcwd()}))", folder=folder) == {"folder": str(folder)}


def test_no_program_is_given_a_secret(monkeypatch):
    secrets = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "API_KEY_SECRET", "OTEL_EXPORTER_OTLP_HEADERS"}
    for name in secrets:
        monkeypatch.setenv(name, "secret-1")
    environment = programs.environment(Settings.secret_names())
    assert not secrets & environment.keys()
    assert environment["PATH"] == os.environ["PATH"]


# A process of its own, because a signal to a process with several threads may come to any of them.
_INTERRUPTED = """
import os, signal
from embedding_api.machine import programs

begin = programs._begin
# The output of the child goes elsewhere by the time that it could handle a signal.
seen = os.dup(1)

def interrupt(*arguments):
    os.kill(os.getppid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    begin(*arguments)

def note(number, frame):
    os.write(seen, f"{os.getpid()}\\n".encode())
    raise SystemExit(1)

programs._begin = interrupt
signal.signal(signal.SIGINT, note)
try:
    programs.ask(["-c", "print(1)"], environment=dict(os.environ))
except SystemExit:
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    raise
"""


def test_a_signal_while_a_program_begins_ends_the_caller_once_and_the_program():
    """Given a handler, when a signal arrives between the fork and the program, then it is handled here alone."""
    caller = subprocess.Popen([sys.executable, "-c", _INTERRUPTED], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert caller.communicate(timeout=30)[0] == f"{caller.pid}\n"
    assert caller.returncode == 1
