"""Programs that do what the master must not, since it would start threads or a device: run, and their answer read."""

import ctypes
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

logger = logging.getLogger(__name__)

# From Linux's prctl.h; other systems have none.
_PR_SET_PDEATHSIG = 1
_prctl = getattr(ctypes.CDLL(None), "prctl", lambda *_: None)

# Of others' settings; OpenTelemetry's headers hold the key of a collector.
_SECRETS = {"HUGGING_FACE_HUB_TOKEN", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"}


def environment(secrets: Collection[str], **more: str) -> dict[str, str]:
    """This process's variables without those named in `secrets`, without others' secrets, and `more`."""
    return {name: value for name, value in os.environ.items() if name not in {*secrets, *_SECRETS}} | more


def ask(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path | None = None,
    keep: Sequence[int] = (),
    is_quiet: bool = False,
) -> dict[str, Any]:
    """Runs a Python program whose last line of output is a JSON object. It ends at the latest with this process.

    Args:
        arguments: The program and what it is given, as Python's own command line has it.
        environment: All of its variables.
        folder: Its working folder; this process's own if None.
        keep: File descriptors that it inherits.
        is_quiet: Whether the lines that it writes to stderr are logged at level DEBUG, and not at WARNING.

    Returns:
        What it said, or `end`: how it ended without saying anything, a predicate without its subject.
    """
    program = Path(arguments[arguments[0] == "-m"]).name
    with subprocess.Popen(
        # -P: the program's own folder stays off the module path.
        [sys.executable, "-P", *arguments],
        env=environment,
        cwd=folder,
        # In a process group of its own, which a terminal's Ctrl-C does not reach, it may not read from a terminal.
        process_group=0,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=keep,
        # A process that loads models has one thread, so that nothing is locked in its fork.
        preexec_fn=partial(end_with_parent, os.getpid()),
    ) as child:
        try:
            output, errors = _read(child, program, logging.DEBUG if is_quiet else logging.WARNING)
        except BaseException:
            # With all that it started.
            os.killpg(child.pid, signal.SIGKILL)
            raise
    try:
        answer = json.loads(output[-1])
    except (IndexError, ValueError):
        answer = None
    return answer if isinstance(answer, dict) else {"end": _end(child.returncode, errors)}


def end_with_parent(pid: int) -> None:
    """Ends this process when the one that started it ends: nobody would take what it makes, and it may hold a lock."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != pid:
        os._exit(1)


def _read(child: subprocess.Popen[bytes], program: str, level: int) -> tuple[list[str], list[str]]:
    """What a program writes to stdout and to stderr, in lines; those to stderr are logged as they come, each once."""
    pipes: list[IO[bytes]] = [pipe for pipe in (child.stdout, child.stderr) if pipe is not None]
    lines: list[list[str]] = [[], []]
    rests = [b"", b""]
    with selectors.DefaultSelector() as selector:
        for index, pipe in enumerate(pipes):
            selector.register(pipe, selectors.EVENT_READ, index)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, 65_536)
                *whole, rests[key.data] = (rests[key.data] + (data or b"\n")).split(b"\n")
                told = [line for one in whole if (line := one.decode(errors="replace").strip())]
                if pipes[key.data] is child.stderr:
                    for line in dict.fromkeys(told):
                        if line not in lines[key.data]:
                            logger.log(level, "%s: %s", program, line)
                lines[key.data] += told
                if not data:
                    selector.unregister(key.fileobj)
    return lines[0], lines[1]


def _end(code: int, errors: Sequence[str]) -> str:
    if code == -signal.SIGKILL:
        return "was ended by signal 9, most likely for want of memory; free some, or choose a smaller model"
    if code < 0:
        return f"was ended by signal {-code}"
    last = next(reversed(errors), "")
    return f"ended with code {code} ({last[:300] or 'no message'})"
