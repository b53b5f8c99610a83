"""Starts the service on a device, compares its vectors with those of the CPU, and measures requests over HTTP."""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import servers
from bench.contestants import OURS, Served
from bench.device import MODEL, bounds
from bench.device.sweep import Pace, Point, Texts, sweep
from bench.servers import ROOT
from bench.texts import Shelf
from embedding_api.engine.work import Vectors

# The most texts that all clients together send at once.
_MOST_AT_ONCE = 1024

_READY_S = 60

# Of a service that no user waits for: it stops at once, and accepts all that is sent.
_SETTINGS = {"DRAIN_S": "0", "GRACEFUL_TIMEOUT_S": "5", "MAX_QUEUED_TOKENS": "10000000"}


def check(found: dict[str, Any], folder: Path, settings: dict[str, str], pace: Pace, until_s: float) -> list[str]:
    """Start the service, compare and measure, and return what is wrong.

    Args:
        found: Gets `ready_s`, `compared`, `points`, `left_out` and the service's own `warnings`, one after the other.
        folder: The folder that `bench.device.model` filled.
        settings: Variables for the service, DEVICE and PRECISION among them.
        pace: Sizes and times.
        until_s: The time on the monotonic clock until which to measure.

    Raises:
        RuntimeError: The service does not start, or fails.
    """
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), "wsgi:app"]
    started_s = time.monotonic()
    with servers.start("the service", command, OURS | _SETTINGS | settings, cwd=folder) as server:
        server.wait("/health/ready", most_s=_READY_S)
        found["ready_s"] = round(time.monotonic() - started_s, 1)
        (model,) = json.loads(server.wait("/v1/models", most_s=10))["data"]
        served = Served(server, MODEL)
        vectors = _vectors(served, json.loads((folder / "texts.json").read_text()))
        found["compared"] = bounds.compare(np.load(folder / "reference.npy"), vectors, settings["PRECISION"])
        broken = bounds.broken(found["compared"], vectors)
        if (precision := model["precision"]) != settings["PRECISION"]:
            broken.append(f"the service computes in {precision}")
        found |= _measured(served, Shelf(json.loads((folder / "words.json").read_text())), pace, until_s)
        found["warnings"] = re.findall(r"^.*\bWARNING\b.*$", server.logged(), re.MULTILINE)
    return broken


def _vectors(served: Served, texts: Texts) -> Vectors:
    """Return the vectors of all texts in one request, and of every second one again alone in its place."""
    together = np.array(served.vectors(texts), np.float32)
    for index in range(0, len(texts), 2):
        together[index] = np.array(served.vectors([texts[index]]), np.float32)[0]
    return together


def _measured(served: Served, shelf: Shelf, pace: Pace, until_s: float) -> dict[str, Any]:
    points: list[Point] = []
    left_out: list[str] = []
    for number, n_clients in enumerate(pace.clients):

        def run(requests: list[Texts], limit_s: float, n_clients: int = n_clients) -> Point:
            done = served.run(requests, n_clients, limit_s=limit_s)
            return {"elapsed_s": done.elapsed_s, "requests": done.n_requests}

        sizes = [size for size in pace.sizes if size * n_clients <= _MOST_AT_ONCE]
        now_s = time.monotonic()
        share_s = (until_s - now_s) / (len(pace.clients) - number)
        found = sweep(pace._replace(sizes=sizes), shelf, run, n_clients, now_s + share_s)
        points += found.points
        left_out += found.left_out
    return {"points": points, "left_out": left_out}
