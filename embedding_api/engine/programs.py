"""Programs that do what the master must not, since it would start threads or a device: run, and their answer read."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from embedding_api.config import Settings

logger = logging.getLogger(__name__)


# Of others' settings; OpenTelemetry's headers hold the key of a collector.
_SECRETS = {"HUGGING_FACE_HUB_TOKEN", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"}


def environment(**more: str) -> dict[str, str]:
    """This process's variables without its secrets, and more."""
    secrets = {field.name.upper() for field in fields(Settings) if field.metadata["secret"]} | _SECRETS
    return {name: value for name, value in os.environ.items() if name not in secrets} | more


def ask(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path | None = None,
    keep: Sequence[int] = (),
    is_quiet: bool = False,
) -> dict[str, Any]:
    """Runs a Python program whose last line of output is a JSON object.

    Args:
        arguments: The program and what it is given, as Python's own command line has it.
        environment: All of its variables.
        folder: Its working folder; this process's own if None.
        keep: File descriptors that it inherits.
        is_quiet: Whether what it writes to stderr is logged at level DEBUG alone; otherwise it goes where ours goes.

    Returns:
        What it said, or `end`: how it ended without saying anything, a predicate without its subject.
    """
    # -P: the program's own folder stays off the module path.
    done = subprocess.run(
        [sys.executable, "-P", *arguments],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if is_quiet else None,
        pass_fds=keep,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if is_quiet:
        logger.debug("%s wrote:\n%s", arguments[0], done.stderr)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        answer = None
    return answer if isinstance(answer, dict) else {"end": _end(done)}


def _end(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode == -signal.SIGKILL:
        return "was ended by signal 9, most likely for want of memory; free some, or choose a smaller model"
    if done.returncode < 0:
        return f"was ended by signal {-done.returncode}"
    if done.stderr is None:
        return f"ended with code {done.returncode}; see the lines above"
    last = next(reversed(done.stderr.splitlines()), "")
    return f"ended with code {done.returncode} ({last[:300] or 'no message'})"
