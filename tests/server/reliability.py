"""docs/reliability.md, made by a run of the tests: `make reliability`.

A test that makes a fault happen says which, `@pytest.mark.fault("overload")`, and tells the fixture `observed` what it
saw. `pytest --reliability=FILE` makes a table of it, a row for each fault there is. (The sign is needed: pytest looks
for its plugins before it knows this option, and would look beside a FILE that stands alone.)
"""

import shlex
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest


class Fault(NamedTuple):
    """A row: what happens, and what must happen then."""

    what: str
    must: str


FAULTS = {
    "overload": Fault(
        "more work than the queue takes, of many small requests or of large ones",
        "429 at once, counted, with a `Retry-After` from the rate at which work is done; what was accepted keeps its "
        "latency, memory stays bounded, and 2 s after the load all is as before; a request alone is never refused",
    ),
    "deadline": Fault(
        "a request older than its deadline, the server's or the client's own",
        "504; its texts leave the queue, and nothing is computed for it",
    ),
    "client gone": Fault("the client goes away", "its waiting texts are dropped, and counted"),
    "raising text": Fault(
        "a text that makes the backend raise", "500 for its request alone; others of the batch are computed without it"
    ),
    "not finite": Fault(
        "NaN or infinity in a vector", "500 for that text's request, counted; never NaN or null in an answer"
    ),
    "hang": Fault(
        "the backend hangs in a batch",
        "seen after `INFERENCE_TIMEOUT_S`: the worker hands its waiting work on, answers its clients, and is replaced; "
        "meanwhile it is not ready, and says so",
    ),
    "kill": Fault(
        "SIGKILL of a worker, 20 times under load",
        "no request through nginx fails; direct clients lose the killed worker's connections at most; "
        "ready again within 2 s",
    ),
    "out of memory": Fault(
        "a worker killed for lack of memory",
        "as any killed worker; and the log says that it was memory, from the control group's own counters, "
        "and of no other kill",
    ),
    "sigterm": Fault(
        "SIGTERM under load",
        "for `DRAIN_S` readiness and new work get 503 and `Connection: close`; running requests finish; exit code 0 "
        "within `GRACEFUL_TIMEOUT_S`",
    ),
    "sighup": Fault("SIGHUP under load", "all workers are renewed, and no request is lost"),
    "reload": Fault(
        "SIGHUP with a mistake in the settings",
        "one line says which; the service goes on as it was, loses no request, and takes the settings once mended",
    ),
    "start": Fault(
        "a start with a bad setting, an unreadable cache, a full disk, a used port, a missing model",
        "one line says what and how to mend it, and the exit code is not 0, within seconds; a damaged cache is remade",
    ),
    "slow clients": Fault(
        "headers a byte a second, bodies that never end, as many as there are threads",
        "408 for them after `CLIENT_TIMEOUT_S`; others are served as before; through nginx they reach no worker",
    ),
    "refused by gunicorn": Fault(
        "what Gunicorn refuses by itself: a bad header or chunk, a long URI, large headers", "the envelope of errors"
    ),
    "malformed": Fault(
        "10,000 malformed bodies, the oddities of real clients, and what schemathesis makes of the OpenAPI document",
        "never 5xx, never a hang, always the envelope",
    ),
    "soak": Fault(
        "30 minutes of mixed load (`make soak`; a minute of it in the tests)",
        "a worker's private memory grows by less than 5 MB after the first minute; no descriptor or thread is left "
        "behind; p99 does not rise",
    ),
}

HEAD = """\
# What happens when things go wrong

Made by a run of the tests, `make reliability`, and not by hand: in each test the fault happened to real processes.
Figures are those of this one run."""
COLUMNS = "| fault | what must happen | what happened | tests |\n| --- | --- | --- | --- |"
BREAK = "<br>"
NOTHING = {"no test", "not run", "skipped"}


@pytest.fixture
def observed(record_property):
    """Notes for docs/reliability.md what this test saw, in a few words with figures."""
    return lambda text: record_property("observed", text)


def pytest_addoption(parser):
    parser.addoption("--reliability", metavar="FILE", type=Path, help="write what the fault tests saw, as Markdown")


def pytest_configure(config):
    if config.option.reliability is not None:
        config.pluginmanager.register(Record(config))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        for key in faults_of(item) - FAULTS.keys():
            raise pytest.UsageError(f"{item.nodeid}: no fault is called {key!r}; name one of {', '.join(FAULTS)}")


def faults_of(item) -> set[str]:
    return {mark.args[0] for mark in item.iter_markers("fault")}


class Run(NamedTuple):
    """One test's outcome: "passed", "failed", "skipped" or "not run", and what it observed."""

    outcome: str
    observed: tuple[str, ...] = ()


class Record:
    """What became of every fault test there is, those left out of this run included."""

    def __init__(self, config):
        self.config = config
        self.file = config.option.reliability.absolute()
        # By key of FAULTS and test function; a function that has parameters runs several times.
        self.tests = defaultdict(lambda: defaultdict(list))
        self.runs = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items):
        for item in items:
            for key in faults_of(item):
                self.tests[key][f"{item.path.name}::{item.originalname}"].append(item.nodeid)

    def pytest_runtest_logreport(self, report):
        before = self.runs.get(report.nodeid)
        if before is None or before.outcome == "passed":
            noted = tuple(text for name, text in report.user_properties if name == "observed")
            self.runs[report.nodeid] = Run(report.outcome, noted)

    def pytest_sessionfinish(self):
        self.file.write_text(self.document())

    def document(self) -> str:
        from bench import machine  # here, since most runs need none of it

        command = shlex.join(["pytest", *self.config.invocation_params.args])
        facts = {"command": f"`{command}`", **machine.here()}
        rows = {key: self.row(key) for key in FAULTS}
        left_out = [key for key, (happened, _) in rows.items() if NOTHING & set(happened.split(BREAK))]
        return (
            f"{HEAD}\n\n"
            + (f"**Not the whole of it: tests are missing or were not run for {', '.join(left_out)}.**\n\n")
            * bool(left_out)
            + "".join(f"- {name}: {value}\n" for name, value in facts.items())
            + f"\n{COLUMNS}\n"
            + "".join(f"| {' | '.join([*FAULTS[key], *row])} |\n" for key, row in rows.items())
        )

    def row(self, key) -> tuple[str, str]:
        """The last two cells: what happened, and the tests that saw it."""
        tests = self.tests[key]
        happened = [told([self.runs.get(run, Run("not run")) for run in runs]) for runs in tests.values()]
        return BREAK.join(happened or ["no test"]).replace("|", r"\|"), BREAK.join(f"`{name}`" for name in tests)


def told(runs) -> str:
    """What one test function has to say, whatever it was run with."""
    outcomes = [run.outcome for run in runs]
    noted = "; ".join(dict.fromkeys(text for run in runs for text in run.observed))
    if n_failed := outcomes.count("failed"):
        return f"**failed** ({n_failed} of {len(runs)}){noted and ': '}{noted}"
    if "not run" in outcomes:
        return "not run"
    if "passed" in outcomes:
        return noted or "as it must"
    return "skipped"
