"""The private memory of a worker after real work."""

import json
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.texts import Shelf

N_REQUESTS, N_TEXTS, LIMIT_MB = 200, 32, 40


def private_mb(pid: int) -> float:
    """Return Private_Clean plus Private_Dirty of a process in MB, from the kernel's own sum over its mappings."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kb) for kb in re.findall(r"^Private_(?:Clean|Dirty): +(\d+) kB$", rollup, re.MULTILINE)) / 1024


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells")
def test_a_worker_holds_little_for_itself_after_200_requests_of_32_mixed_texts(launch, capsys):
    server = launch(WORKERS="2")
    shelf = Shelf()
    pool = [shelf.text(kind) for _ in range(200) for kind in ("short", "passage", "long")]
    before = {worker.pid: private_mb(worker.pid) for worker in server.workers}

    def served() -> Counter:
        return Counter(re.findall(r"\[(\d+)\] request .* status=200 .* texts=32", server.log))

    def client(seed: int) -> None:
        choose = random.Random(seed)
        while min(served()[str(pid)] for pid in before) < N_REQUESTS:
            server.embed(choose.sample(pool, N_TEXTS))

    with ThreadPoolExecutor(4) as clients:
        list(clients.map(client, range(4)))
    after = {pid: private_mb(pid) for pid in before}
    with capsys.disabled():
        print("\nprivate MB per worker:", json.dumps({"idle": list(before.values()), "after": list(after.values())}))
    assert max(after.values()) <= LIMIT_MB
