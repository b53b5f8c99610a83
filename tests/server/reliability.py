"""docs/reliability.md, written by a run of the tests: `make reliability`.

A test that makes a fault happen names it, `@pytest.mark.fault("overload")`, and passes what it saw to the fixture
`observed`. `pytest --reliability=FILE` writes a section for each fault. (The sign = is
necessary. pytest looks for its plugins before it knows this option. Without the sign it takes FILE for a test path,
and looks for conftest files there.)
"""

import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest


class Fault(NamedTuple):
    """A section: its title, what goes wrong, and what the service must do then."""

    title: str
    what: str
    required: str


FAULTS = {
    "overload": Fault(
        "Overload",
        "More work arrives than the queue takes, as many small requests or as large ones.",
        "The service refuses new requests with 429 at once, counts them, and computes `Retry-After` from the rate at "
        "which work is done. Accepted requests keep their latency. Memory stays bounded. 2 s after the load everything "
        "is as before. A request that is alone is never refused.",
    ),
    "deadline": Fault(
        "Deadline exceeded",
        "A request is older than its deadline, which the server or the client has set.",
        "The request gets 504. Its texts leave the queue, and nothing is computed for it.",
    ),
    "client gone": Fault(
        "Client gone",
        "The client closes its connection.",
        "The service drops the waiting texts of that client and counts them.",
    ),
    "raising text": Fault(
        "A text that raises an error",
        "The backend raises an error for one text.",
        "Only the request with that text gets 500. The service computes the other texts of the batch without it.",
    ),
    "not finite": Fault(
        "NaN or infinity in a vector",
        "The model computes NaN or infinity for a text.",
        "The request with that text gets 500, and the service counts it. No response contains NaN or null.",
    ),
    "hang": Fault(
        "A batch that hangs",
        "The backend hangs in a batch.",
        "The service notices it after `INFERENCE_TIMEOUT_S`. The worker passes its waiting work to other workers, "
        "answers its clients, and is replaced. Until then its readiness check fails.",
    ),
    "kill": Fault(
        "Workers killed",
        "SIGKILL ends a worker, 20 times under load.",
        "No request through nginx fails. Direct clients lose only the connections to the killed worker. The service "
        "is ready again within 2 s.",
    ),
    "out of memory": Fault(
        "Out of memory",
        "The kernel kills a worker for lack of memory.",
        "The same as for any killed worker. In addition the log names the cause, which it reads from the counters of "
        "the control group, and it names this cause for no other kill.",
    ),
    "sigterm": Fault(
        "SIGTERM under load",
        "SIGTERM stops the service while requests are running.",
        "For `DRAIN_S` readiness and new work get 503 and `Connection: close`. Running requests finish. The exit code "
        "is 0, within `GRACEFUL_TIMEOUT_S`.",
    ),
    "sighup": Fault(
        "SIGHUP under load",
        "SIGHUP renews the workers while requests are running.",
        "All workers are replaced, and no request is lost.",
    ),
    "reload": Fault(
        "SIGHUP with a mistake in the settings",
        "SIGHUP reads settings that are wrong.",
        "One log line names the mistake. The service goes on as before and loses no request. After the mistake is "
        "corrected, the next SIGHUP applies the settings.",
    ),
    "start": Fault(
        "A start that fails",
        "A setting is wrong, the cache cannot be read, the disk is full, the port is in use, or a model is missing.",
        "One line says what is wrong and how to correct it. The exit code is not 0. Both happen within seconds. A "
        "damaged cache is built again.",
    ),
    "no threads": Fault(
        "No more threads",
        "The system refuses further processes or threads.",
        "Requests wait for the threads that there are. A start without the threads that it needs says so in one line, "
        "with the remedy, and its exit code is not 0.",
    ),
    "slow clients": Fault(
        "Slow clients",
        "As many clients as there are threads send headers one byte a second, or bodies that never end.",
        "They get 408 after `CLIENT_TIMEOUT_S`. Other clients are served as before. Through nginx the slow clients "
        "reach no worker.",
    ),
    "refused by gunicorn": Fault(
        "Requests that Gunicorn refuses",
        "Gunicorn itself refuses a request: a bad header or chunk, a long URI, large headers.",
        "The response has the same error body as every other error.",
    ),
    "malformed": Fault(
        "Malformed requests",
        "10,000 malformed bodies, unusual requests of real clients, and requests that schemathesis makes from the "
        "OpenAPI document.",
        "The service never responds with 5xx, never hangs, and always sends its error body.",
    ),
    "soak": Fault(
        "Half an hour of load",
        "30 minutes of mixed load (`make soak`; one minute of it in the tests).",
        "The private memory of a worker grows by less than 5 MB after the first minute. No descriptor and no thread "
        "remains. p99 does not rise.",
    ),
}

HEAD = """\
# What happens when things go wrong

A run of the tests wrote this page: `make reliability`. Each test made the fault happen to real processes. The figures
are those of this one run."""
NO_TEST = "No test makes this fault happen."


@pytest.fixture
def observed(record_property):
    """Record for docs/reliability.md what this test saw, in a few words with figures."""
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
    """One run of a test: "passed", "failed", "skipped" or "not run", and what the test observed."""

    outcome: str
    observed: tuple[str, ...] = ()


# The runs of one fault's tests, by the name of the test function. A function with parameters runs several times.
Tests = Mapping[str, Sequence[Run]]


class Record:
    """The outcome of every fault test that exists, including tests that this run leaves out."""

    def __init__(self, config):
        self.config = config
        self.file = config.option.reliability.absolute()
        # Node ids, by key of FAULTS and by test function.
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
        from bench import machine  # imported here, because most test runs do not need it

        command = shlex.join(["pytest", *self.config.invocation_params.args])
        self.file.write_text(document({"command": f"`{command}`", **machine.here()}, self.outcomes()))

    def outcomes(self) -> dict[str, Tests]:
        """Return the runs of each test function, by key of FAULTS."""
        return {
            key: {name: [self.runs.get(run, Run("not run")) for run in runs] for name, runs in self.tests[key].items()}
            for key in FAULTS
        }


def document(facts: Mapping[str, str], outcomes: Mapping[str, Tests]) -> str:
    """Return the whole page.

    Args:
        facts: When and where the tests ran.
        outcomes: The runs of each test function, by key of FAULTS.
    """
    incomplete = [FAULTS[key].title for key, tests in outcomes.items() if not is_complete(tests)]
    warning = f"**Incomplete: tests are missing or did not run for: {', '.join(incomplete)}.**\n\n"
    return (
        f"{HEAD}\n\n"
        + warning * bool(incomplete)
        + "".join(f"- {name}: {value}\n" for name, value in facts.items())
        + "".join(section(FAULTS[key], tests) for key, tests in outcomes.items())
    )


def is_complete(tests: Tests) -> bool:
    """Return True if the fault has tests and each of them ran."""
    return bool(tests) and all(summary(runs) not in {"not run", "skipped"} for runs in tests.values())


def section(fault: Fault, tests: Tests) -> str:
    """Return the section of one fault."""
    observed = "".join(item(name, runs) for name, runs in tests.items()) or f"{NO_TEST}\n"
    return (
        f"\n## {fault.title}\n\n**Fault:** {fault.what}\n\n**Required:** {fault.required}\n\n"
        f"**Observed:**\n\n{observed}"
    )


def item(name: str, runs: Sequence[Run]) -> str:
    """Return the list item of one test function: its name, how it failed if it did, and what it observed."""
    observed = [*dict.fromkeys(text for run in runs for text in run.observed)]
    if (text := summary(runs)) == "passed":
        text = "" if observed else "as required"
    head = f"- `{name}`{text and ': '}{text}\n"
    return head + "".join(f"    - {line}\n" for line in observed)


def summary(runs: Sequence[Run]) -> str:
    """Return one outcome for all runs of one test function."""
    outcomes = [run.outcome for run in runs]
    if n_failed := outcomes.count("failed"):
        return f"**failed** ({n_failed} of {len(runs)})"
    return next(outcome for outcome in ("not run", "passed", "skipped") if outcome in outcomes)
