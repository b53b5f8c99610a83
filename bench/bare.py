"""The bare backend: no HTTP, no queue, no tokenizer in the measured time. The upper limit for bulk work here.

Loads the model as the service does, forks one process per core, and writes a line of JSON for each line that it reads:
`[texts, batch_tokens]` gives `[elapsed_s, n_tokens]`. Batches are sorted by length, longest first, and each process
computes the next one when it has finished its last. The program ends, with its processes, when standard input ends.
"""

import json
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from bench.servers import ROOT
from embedding_api.engine.start import load_models
from embedding_api.machine import cores, memory
from embedding_api.settings import load_settings

Job = tuple[list[list[Any]], int]


def batches(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Return batches of positions, longest texts first. The rows of a batch times its longest text fit the budget."""
    order = [int(position) for position in np.argsort(-np.asarray(lengths), kind="stable")]
    cut: list[list[int]] = []
    for position in order:
        if not cut or (len(cut[-1]) + 1) * lengths[cut[-1][0]] > batch_tokens:
            cut.append([])
        cut[-1].append(position)
    return cut


def compute(backend: Any, jobs: Connection, following: Any, all_ready: Any) -> None:
    """Run a forked process: prepare the backend once, then compute batches of each list that arrives."""
    backend.prepare(1)
    while True:
        todo, n_prompt_tokens = jobs.recv()
        all_ready.wait()
        while True:
            with following.get_lock():
                number = following.value
                following.value += 1
            if number >= len(todo):
                break
            backend.compute(todo[number], n_prompt_tokens)
        jobs.send(None)


def main() -> None:
    """Load the model, fork, and serve until standard input ends."""
    results, sys.stdout = sys.stdout, sys.stderr
    settings = load_settings(ROOT / ".env")
    route = load_models(settings).models[0].route
    route.backend.warm_up(route.reader.window)
    memory.freeze()
    context = multiprocessing.get_context("fork")
    n_processes = cores.count()
    following, all_ready = context.Value("q", 0), context.Barrier(n_processes + 1)
    pipes = []
    for _ in range(n_processes):
        ours, theirs = context.Pipe()
        context.Process(target=compute, args=(route.backend, theirs, following, all_ready), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    loaded = {"precision": route.backend.precision, "backend": route.backend.name}
    print(json.dumps(loaded), file=results, flush=True)
    for line in sys.stdin:
        texts, batch_tokens = json.loads(line)
        reading = route.reader.read(texts, route.prompt)
        ids = [tokens.ids for tokens in reading.tokens]
        todo = [[ids[position] for position in batch] for batch in batches([len(each) for each in ids], batch_tokens)]
        following.value = 0
        for pipe in pipes:
            pipe.send((todo, reading.n_prompt_tokens))
        all_ready.wait()
        started = time.perf_counter()
        for pipe in pipes:
            pipe.recv()
        print(json.dumps([time.perf_counter() - started, sum(map(len, ids))]), file=results, flush=True)


if __name__ == "__main__":
    main()
