"""A plain process uses all cores with the real model, without Gunicorn and Flask."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# A separate program, because it must fork before it starts a thread. A process that runs tests may have threads.
PROGRAM = """
import json, os, signal, sys
from embedding_api.engine.start import load_engine
from embedding_api.engine.scheduling.timing import Timing
from embedding_api.engine.work import Lane
from embedding_api.engine.workers.forked import ForkedWorkers
from embedding_api.request import Caller
from embedding_api.settings import load_settings

engine = load_engine(load_settings())
route = engine.models.models[0].route
texts = [f"text number {n} " + "word " * (n % 60) for n in range(600)]
inputs = [tokens.ids for tokens in route.reader.read(texts, route.prompt).tokens]
alone = [route.backend.compute([ids], 0)[0] for ids in inputs[:20]]

def largest_difference(vectors):
    return max(float(abs(one - other).max()) for one, other in zip(vectors, alone))

with ForkedWorkers(engine.setup, 3) as workers:
    timing = Timing()
    first = workers.runner.compute(Lane(0, 0), inputs, Caller(), timing)
    pids = workers.pids
    os.kill(pids[0], signal.SIGKILL)
    second = workers.runner.compute(Lane(0, 0), inputs, Caller())
print(json.dumps({
    "modules": sorted({"gunicorn", "flask"} & set(sys.modules)),
    "shapes": [first.values.shape, second.values.shape],
    "differences": [largest_difference(first.values), largest_difference(second.values)],
    "n_workers": len(pids) + 1,
    "n_computing": len({run.seat for run in timing.runs}),
    "alive": [pid for pid in pids if os.path.exists(f"/proc/{pid}")],
}))
"""


def test_a_plain_process_embeds_on_all_cores_and_survives_the_death_of_a_worker(clean_settings, monkeypatch):
    monkeypatch.setenv("WORKERS", "2")
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["modules"] == []
    assert told["shapes"] == [[600, 384], [600, 384]]
    assert max(told["differences"]) < 1e-5
    assert told["n_workers"] == 3
    assert told["n_computing"] == 2
    assert told["alive"] == []
