"""Full packs: what the service's own backend computes in bulk, without HTTP, queue or tokenizer in the measured time.

Loads the model as the service does, forks one process per core, and writes a line of JSON for each line that it reads:
a list of texts gives `[elapsed_s]`. Each process computes with one thread, and takes the next pack when it has finished
its last. The program ends, with its processes, when standard input ends.
"""

import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from bench.servers import ROOT
from embedding_api.engine.start import load_models
from embedding_api.machine import cores, memory
from embedding_api.settings import load_settings

PACK_TOKENS = 256


def packs(lengths: Sequence[int], n_most: int = PACK_TOKENS) -> list[list[int]]:
    """Return packs of positions: each text goes into the first pack that has room for it.

    Args:
        lengths: Tokens of each text.
        n_most: Tokens of a pack. A longer text has a pack of its own.
    """
    packed: list[list[int]] = []
    room: list[int] = []
    for position, length in enumerate(lengths):
        number = next((number for number, left in enumerate(room) if left >= length), len(packed))
        if number == len(packed):
            packed.append([])
            room.append(n_most)
        packed[number].append(position)
        room[number] -= length
    return packed


def compute(backend: Any, jobs: Connection, following: Any, all_ready: Any) -> None:
    """Run a forked process: prepare the backend once, then compute packs of each list that arrives."""
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
        reading = route.reader.read(json.loads(line), route.prompt)
        ids = [tokens.ids for tokens in reading.tokens]
        todo = [[ids[position] for position in pack] for pack in packs([len(each) for each in ids])]
        following.value = 0
        for pipe in pipes:
            pipe.send((todo, reading.n_prompt_tokens))
        all_ready.wait()
        started = time.perf_counter()
        for pipe in pipes:
            pipe.recv()
        print(json.dumps([time.perf_counter() - started]), file=results, flush=True)


if __name__ == "__main__":
    main()
