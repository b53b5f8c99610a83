"""`python -m bench.device`: checks that DEVICE computes the CPU's vectors, and measures it, in under five minutes.

Prints one JSON object, and ends with 1 if a bound is broken. Imports no torch: what needs it runs as another program.
"""

import argparse
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from bench.device import MODEL, served
from bench.device.sweep import QUICK, Pace
from bench.servers import ROOT
from bench.texts import Shelf, library_words
from embedding_api.engine.backends import devices
from embedding_api.engine.backends.proof import PROBE_TEXTS
from embedding_api.machine import cores

Report = dict[str, Any]
# A function that fills a part of the report, with settings and pace, until a time, and returns what is wrong.
Part = Callable[[Report, Path, dict[str, str], Pace, float], list[str]]

# Seconds until measurements end, and until the check is ended, so that it takes less than 300; and the share of a
# precision's time in which it is measured over HTTP.
MEASURE_S, _END_S, HTTP_SHARE = 250, 280, 0.6

# Seconds in which torch is imported and the model loaded, and a size is measured.
_LEAST_S = 20

PRECISIONS = ("float32", "float16", "bfloat16")

# Short texts, passages, and texts over the window, so that batches need padding, and a text is cut.
_COMPARED = ("short", "passage", "long", "short", "passage", "short") * 6


def main() -> None:
    """Check, print the report, and end with 1 if a bound is broken."""
    parser = argparse.ArgumentParser(prog="python -m bench.device", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two sizes, to see that it runs; figures mean nothing")
    options = parser.parse_args()
    output, sys.stdout = sys.stdout, sys.stderr
    started_s = time.monotonic()
    # Whatever hangs ends before the bound, and the servers stop.
    signal.signal(signal.SIGALRM, _end)
    signal.alarm(_END_S)
    device = os.environ.get("DEVICE") or "cuda"
    report: Report = {"device": device, "cores": cores.count(), "versions": _versions(), "precisions": {}, "broken": []}
    if device == "cpu":
        report["note"] = "without a device, this shows only that the check works"
    try:
        with tempfile.TemporaryDirectory() as folder:
            _check(Path(folder), device, report, started_s, QUICK if options.quick else Pace())
    except Exception as error:  # noqa: BLE001 - the report says what happened
        report["broken"].append(f"{type(error).__name__}: {error}")
    signal.alarm(0)
    report["took_s"] = round(time.monotonic() - started_s, 1)
    print(json.dumps(report), file=output)
    sys.exit(1 if report["broken"] else 0)


class _OverdueError(Exception):
    """The check takes too long. It is no OSError, since those are what a client waits through."""


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _OverdueError(f"the check was not ready after {_END_S} s")


def _check(folder: Path, device: str, report: Report, started_s: float, pace: Pace) -> None:
    """Check one precision after the other, and write the results into the report."""
    devices.require(device)
    shelf = Shelf()
    texts = [*PROBE_TEXTS, *(shelf.text(kind) for kind in _COMPARED)]
    (folder / "words.json").write_text(json.dumps(library_words()))
    (folder / "texts.json").write_text(json.dumps(texts))
    _say("making the model, and its vectors on the CPU")
    _run(["bench.device.model", str(folder)], {}, folder, MEASURE_S)
    report["made_s"] = round(time.monotonic() - started_s, 1)
    precisions = PRECISIONS if device == "cuda" else ("float32", "bfloat16")
    if left_out := [each for each in PRECISIONS if each not in precisions]:
        report["left_out"] = f"{', '.join(left_out)}: a precision on cuda only"
    for number, precision in enumerate(precisions):
        begun_s = time.monotonic()
        seconds = (started_s + MEASURE_S - begun_s) / (len(precisions) - number)
        settings = {
            "SUPPORTED_MODELS": f"{MODEL}={folder / 'model'}",
            "CACHE_DIR": str(folder / "cache"),
            "DEVICE": device,
            "BACKEND": "torch",
            "PRECISION": precision,
            "HF_HUB_OFFLINE": "1",
        }
        parts: list[tuple[str, Part, float]] = [("http", served.check, HTTP_SHARE), ("in_process", _inside, 1.0)]
        found: dict[str, Report] = {name: {} for name, _, _ in parts}
        report["precisions"][precision] = found
        for name, part, share in parts:
            _say(f"{precision}, {name}")
            try:
                broken = part(found[name], folder, settings, pace, begun_s + share * seconds)
            except (RuntimeError, subprocess.SubprocessError) as error:
                broken = [str(error)]
            report["broken"] += [f"{precision}, {name}: {each}" for each in broken]
        _subtract(found["http"], found["in_process"])


def _inside(found: Report, folder: Path, settings: dict[str, str], pace: Pace, until_s: float) -> list[str]:
    """Measure the engine in a process of its own; fill `found`, and return what is wrong."""
    # Some time is left also where the service took all of it. The last size may take longer than it is given.
    until_s = max(until_s, time.monotonic() + _LEAST_S)
    arguments = ["bench.device.inside", str(folder), str(until_s), *(["quick"] if pace is QUICK else [])]
    found |= json.loads(_run(arguments, settings, folder, until_s - time.monotonic() + _LEAST_S))
    if "refused" in found:
        return [found["refused"]]
    return ["TF32 is on"] if found["tf32"] else []


def _subtract(over_http: Report, inside: Report) -> None:
    """Add what a request costs beside the engine: HTTP, JSON, and the way to the worker that owns the device."""
    engine_ms = {(point["kind"], point["texts"]): point["request_ms"] for point in inside.get("points", ())}
    for point in over_http.get("points", ()):
        if point["at_once"] == 1 and (size := (point["kind"], point["texts"])) in engine_ms:
            point["beside_engine_ms"] = round(point["request_ms"] - engine_ms[size], 3)


def _run(arguments: list[str], settings: dict[str, str], folder: Path, most_s: float) -> str:
    """Run a program of the bench, and return its standard output."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", *arguments]
    environment = os.environ | settings | {"PYTHONPATH": path}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, timeout=most_s, check=True
    )
    return done.stdout


def _versions() -> dict[str, str]:
    """Return Python's version, and those of our requirements that are installed. Warn of those that are not pinned."""
    versions = {"python": sys.version.split()[0]}
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    for name, pinned in pins.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
            continue
        versions[name] = installed
        if installed.partition("+")[0] != pinned:
            versions[name] += f" instead of {pinned}"
            _say(f"warning: {name} {versions[name]}")
    return versions


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
