"""deploy/prometheus and deploy/grafana agree with the metrics of the service, and work in the real Prometheus."""

import contextlib
import dataclasses
import json
import re
import shutil
import socket
import struct
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import Counter, Gauge, Histogram

from embedding_api.settings import Settings
from embedding_api.telemetry import metrics
from tests import documents
from tests.conftest import until
from tests.server import wire
from tests.server.conftest import MINILM, ROOT, free_port
from tests.server.faulty import APP, SLOW

FOLDER = ROOT / "deploy" / "prometheus"
ALERTS = (FOLDER / "alerts.yml").read_text()
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "embeddings.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
METRICS = [one for one in vars(metrics).values() if isinstance(one, Counter | Gauge | Histogram)]
# Grafana replaces these variables.
FILLED = {"$__rate_interval": "10s", "$__range": "1m", "$instance": ".*", "$model": ".*"}
KEY = "secret"

needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")


def expressions(panel) -> list[str]:
    """Return a panel's queries, as Grafana would send them with all servers and models selected."""
    return [
        re.sub("|".join(map(re.escape, FILLED)), lambda found: FILLED[found[0]], target["expr"])
        for target in panel["targets"]
    ]


def samples(metric) -> list[str]:
    """Return the names of a metric's samples. A histogram has several."""
    endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    (family,) = metric.describe()
    return [family.name + ending for ending in endings[family.type]]


def names(text: str) -> set[str]:
    return set(re.findall(r"\bembeddings_\w+", text))


def promtool(*arguments, **options) -> None:
    """Run promtool; fail if it fails."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr


# The files


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: samples(metric)[0])
def test_every_metric_is_on_the_dashboard(metric):
    assert names(" ".join(one for panel in PANELS for one in expressions(panel))) & set(samples(metric))


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: samples(metric)[0])
def test_every_metric_is_in_the_manual_with_its_labels_and_meaning(metric):
    labels = ", ".join(f"`{label}`" for label in metric._labelnames)
    (family,) = metric.describe()
    name = family.name if family.type == "histogram" else samples(metric)[0]
    row = f"| `{name}` | {labels} | {family.documentation} |\n".replace("|  |", "| |")
    assert row in documents.page("monitoring.md")


def test_only_what_is_counted_is_asked_for():
    asked = names(json.dumps(DASHBOARD)) | names(ALERTS) | names((FOLDER / "alerts_test.yml").read_text())
    assert asked <= {name for metric in METRICS for name in samples(metric)}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: f"{panel['id']} {panel['title']}")
def test_every_panel_says_what_it_shows_in_which_unit_and_from_the_chosen_source(panel):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert [target["refId"] for target in panel["targets"]] == list("ABCDE"[: len(panel["targets"])])
    for target in panel["targets"]:
        assert 'instance=~"$instance"' in target["expr"]
        assert target.get("legendFormat") or panel["type"] in {"stat", "table"}


def test_no_panel_lies_over_another():
    cells = [
        (place["x"] + x, place["y"] + y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["w"])
        for y in range(place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} == set(range(24))
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_the_dashboard_can_be_imported_anywhere():
    """The dashboard contains nothing specific to one Grafana."""
    assert "id" not in DASHBOARD
    variables = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert variables == ["datasource", "instance", "model"]
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used == {*variables, "__rate_interval", "__range", "__all"}


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    alerts = ALERTS.split("- alert: ")[1:]
    settings = {field.name.upper() for field in dataclasses.fields(Settings)}
    said = "".join(path.read_text() for path in (ROOT / "embedding_api").rglob("*.py"))
    for alert in alerts:
        assert re.search(r"^ +for: \d+m$", alert, re.MULTILINE)
        assert re.search(r"^ +severity: (critical|warning)$", alert, re.MULTILINE)
        assert re.search(r'^ +summary: ".*\{\{ \$labels.instance }}.*"$', alert, re.MULTILINE)
        description = " ".join(alert.split("description: >-")[1].split())
        assert set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", description)) <= settings
        # Words in quotes must occur in the service's log messages.
        for words in re.findall(r'"([^"]+)"', description):
            assert words in said
    tested = (FOLDER / "alerts_test.yml").read_text()
    for name in re.findall(r"- alert: (\w+)", ALERTS):
        assert f'alertname="{name}"' in tested


@needs_prometheus
def test_promtool_finds_no_fault_in_the_rules_and_their_tests_hold():
    promtool("check", "rules", "--lint-fatal", FOLDER / "alerts.yml")
    promtool("test", "rules", FOLDER / "alerts_test.yml")


@needs_prometheus
def test_the_rules_tests_notice_an_alert_that_is_not_there(tmp_path):
    for name in re.findall(r"- alert: (\w+)", ALERTS):
        shutil.copy(FOLDER / "alerts_test.yml", tmp_path)
        (tmp_path / "alerts.yml").write_text(re.sub(rf"- alert: {name}\b", "- alert: Another", ALERTS))
        with pytest.raises(AssertionError, match=name):
            promtool("test", "rules", tmp_path / "alerts_test.yml")


# With the real Prometheus


class Prometheus:
    """Prometheus with the files in deploy/, except for the service's address and the scrape interval."""

    def __init__(self, folder: Path, target_port: int) -> None:
        self.port = free_port()
        self._log = folder / "log"
        shutil.copy(FOLDER / "alerts.yml", folder)
        text = (FOLDER / "prometheus.yml").read_text()
        for old, new in {"127.0.0.1:8000": f"127.0.0.1:{target_port}", "15s": "1s"}.items():
            assert old in text
            text = text.replace(old, new)
        (folder / "prometheus.yml").write_text(text)
        (folder / "embeddings.key").write_text(KEY + "\n")
        promtool("check", "config", folder / "prometheus.yml")
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _ask(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=60) as response:
            return json.load(response)["data"]

    def is_ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        with contextlib.suppress(OSError):
            return bool(self.query("1"))
        return False

    def query(self, expression: str) -> list:
        return self._ask("api/v1/query?" + urllib.parse.urlencode({"query": expression}))["result"]

    def rules(self) -> list:
        return [rule for group in self._ask("api/v1/rules")["groups"] for rule in group["rules"]]

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


@pytest.fixture(scope="module")
def protected(_launch):
    return _launch(APP, WORKERS="1", API_KEY_SECRET=KEY)


@pytest.fixture(scope="module")
def prometheus(protected, tmp_path_factory):
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), protected.port)
    try:
        until(prometheus.is_ready, what="Prometheus")
        yield prometheus
    finally:
        prometheus.stop()


def post(texts) -> bytes:
    body = json.dumps({"model": MINILM, "input": texts}).encode()
    return wire.post(body, f"Authorization: Bearer {KEY}".encode())


@needs_prometheus
def test_promtool_finds_no_fault_in_what_is_told(protected):
    asked = urllib.request.Request(f"{protected.url}/metrics", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(asked, timeout=60) as response:
        promtool("check", "metrics", input=response.read().decode())


@needs_prometheus
def test_prometheus_reads_a_protected_server_and_has_data_for_every_panel_and_rule(protected, prometheus):
    """Given one request of each kind that creates new samples: answered, refused, and left while its texts wait."""
    until(lambda: prometheus.query('up{job="embeddings"} == 1'), what="a scrape with the key")
    with wire.Connection(protected.port) as client:
        assert client.ask(post(["a cat", "a cat"])).status == 200
        assert client.ask(post("")).status == 422
    with socket.create_connection(("127.0.0.1", protected.port), timeout=60) as leaving:
        leaving.sendall(post([f"{SLOW} {'word ' * 240} {n}" for n in range(40)]))
        until(lambda: prometheus.query("embeddings_queue_texts > 0"), what="texts that wait")
        # Closing resets the connection.
        leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    missing = {one: panel["title"] for panel in PANELS for one in expressions(panel)}

    def is_all_there():
        # A ratio is NaN while its denominator does not grow.
        client.ask(post(["a cat", "tax law"]))
        for one in list(missing):
            if any(series["value"][1] != "NaN" for series in prometheus.query(one)):
                del missing[one]
        return not missing

    with wire.Connection(protected.port) as client, contextlib.suppress(AssertionError):
        until(is_all_there, what="data for each panel")
    assert missing == {}
    until(lambda: prometheus.query('embeddings_texts_dropped_total{reason="client_gone"} > 20'), what="dropped texts")
    assert {rule["health"] for rule in until(prometheus.rules)} == {"ok"}
    until(lambda: prometheus.query('embeddings:requests:rate5m{status="422"}'), what="what a rule records")
