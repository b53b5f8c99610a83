"""Run Python programs in processes of their own, for work that would start threads or a device in the master."""

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from embedding_api.errors import ScarcityError

logger = logging.getLogger(__name__)

# From Linux's prctl.h. Other systems have no such call.
_PR_SET_PDEATHSIG = 1
_prctl = getattr(ctypes.CDLL(None), "prctl", lambda *_: None)

# The signals that end a start.
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)

# Secrets in variables that are no settings of this service. OpenTelemetry's headers hold the key of a collector.
_SECRETS = {"HUGGING_FACE_HUB_TOKEN", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"}

# The folder that holds this package, which may not be on the module path.
_ROOT = str(Path(__file__).parents[2])


def environment(secrets: Collection[str], **more: str) -> dict[str, str]:
    """Return the variables of a program: those of this process without secrets, and the way to this package.

    Args:
        secrets: Names of variables to leave out.
        more: Variables to add.
    """
    kept = {name: value for name, value in os.environ.items() if name not in {*secrets, *_SECRETS}}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH", "")]))} | more


def ask(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path | None = None,
    keep: Sequence[int] = (),
    is_quiet: bool = False,
) -> dict[str, Any]:
    """Run a Python program whose last line of output is a JSON object. It ends at the latest with this process.

    Args:
        arguments: The arguments of the Python interpreter: the program and its own arguments.
        environment: All variables of the program.
        folder: The working folder; that of this process if None.
        keep: File descriptors that the program inherits.
        is_quiet: True to log the program's stderr at level DEBUG instead of WARNING.

    Returns:
        The JSON object, or `{"end": why there is none}`, such as "ended with code 1 (no message)".

    Raises:
        ScarcityError: The system refuses the process.
    """
    name = arguments[1].rpartition(".")[2] if arguments[0] == "-m" else Path(arguments[0]).name
    with tempfile.TemporaryFile() as output, contextlib.ExitStack() as held:
        # A signal between the fork and the program would be handled in the child, too, and could be lost here.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
        held.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
        try:
            child = subprocess.Popen(
                # -P: neither the program's folder nor the working folder is on the module path.
                [sys.executable, "-P", *arguments],
                env=environment,
                cwd=folder,
                # In a process group of its own, so that a terminal's Ctrl-C does not reach it. Such a group may not
                # read from the terminal.
                process_group=0,
                stdin=subprocess.DEVNULL,
                # A file, unlike a second pipe, need not be read meanwhile.
                stdout=output,
                stderr=subprocess.PIPE,
                pass_fds=keep,
                # Safe, since a process that loads models has one thread: no lock is held during the fork.
                preexec_fn=partial(_begin, os.getpid(), mask),
            )
        except BlockingIOError as error:
            raise ScarcityError(f"a process for {name}") from error
        # Not `with child`: a signal that arrived between that line and the next would wait for the end of the program.
        try:
            held.close()
            errors = _log_errors(child, name, logging.DEBUG if is_quiet else logging.WARNING)
        except BaseException:
            # The program and all that it started.
            os.killpg(child.pid, signal.SIGKILL)
            raise
        finally:
            with child:
                pass  # which closes the pipe and waits for the end
        output.seek(0)
        last = output.read().strip().rpartition(b"\n")[2]
    try:
        result = json.loads(last)
    except ValueError:
        result = None
    return result if isinstance(result, dict) else {"end": _end(child.returncode, errors)}


def _begin(parent: int, mask: Collection[int]) -> None:
    """Prepare a child for its program, in which signals have their usual effect."""
    end_with_parent(parent)
    for number in _INTERRUPTS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def end_with_parent(pid: int) -> None:
    """Let the system kill this process when its parent ends: nobody would use its result, and it may hold a lock."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != pid:
        os._exit(1)


def _log_errors(child: subprocess.Popen[bytes], name: str, level: int) -> list[str]:
    """Return the lines that a program writes to stderr. Log each of them once, when it comes."""
    lines: list[str] = []
    for line in child.stderr or ():
        if text := line.decode(errors="replace").strip():
            if text not in lines:
                logger.log(level, "%s: %s", name, text)
            lines.append(text)
    return lines


def _end(code: int, errors: Sequence[str]) -> str:
    if code == -signal.SIGKILL:
        return "was ended by signal 9, most likely for want of memory; free some, or choose a smaller model"
    if code < 0:
        return f"was ended by signal {-code}"
    last = next(reversed(errors), "")
    return f"ended with code {code} ({last[:300] or 'no message'})"
