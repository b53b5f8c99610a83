"""What GET /metrics shows: the metrics' names, labels and units. All metrics of the service are made here.

Buckets are in seconds unless the name says otherwise.
"""

from functools import partial

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics, values

from embedding_api.telemetry.counters import Counters, Value

# A creation time for each number would double the output; no number is reset while the server lives.
disable_created_metrics()  # type: ignore[no-untyped-call] # it has no annotation

# Where the processes of this server count, whatever folder the environment names. Before the first metric is made: it
# would count elsewhere, unseen.
counters = Counters()
values.ValueClass = partial(Value, counters)

# From a cached short text to REQUEST_TIMEOUT_S's default.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def _counter(name: str, help_: str, *labels: str) -> Counter:
    return Counter(f"embeddings_{name}", help_, labels, registry=None)


def _histogram(name: str, help_: str, *labels: str, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(f"embeddings_{name}", help_, labels, buckets=buckets, registry=None)


def _gauge_of_workers(name: str, help_: str) -> Gauge:
    """Return a gauge that each worker sets for itself, summed over the workers that live."""
    return Gauge(f"embeddings_{name}", help_, multiprocess_mode="livesum", registry=None)


def _gauge_of_server(name: str, help_: str, *labels: str) -> Gauge:
    """Return a gauge that the master alone sets."""
    return Gauge(f"embeddings_{name}", help_, labels, multiprocess_mode="max", registry=None)


# Requests

REQUESTS = _counter(
    "http_requests",
    "Requests answered. route and method are - if they are unknown; model is empty if no text was computed.",
    "route",
    "method",
    "status",
    "model",
)
REFUSED = _counter(
    "requests_refused", "Requests answered with an error, by its code, such as server_overloaded.", "reason"
)
IN_PROGRESS = _gauge_of_workers("requests_in_progress", "Requests that have arrived completely and are not answered.")
CLIENTS_GONE = _counter("clients_gone", "Requests whose client left before they were answered.")
STAGES = _histogram(
    "request_duration_seconds",
    "Time of a request answered with vectors: total, and its stages tokenize, queue and inference.",
    "model",
    "stage",
    buckets=_SECONDS,
)

# Texts

TEXTS = _counter("texts", "Texts answered with their vectors.", "model")
TOKENS = _counter("tokens", "Tokens of the texts answered, as in usage.prompt_tokens.", "model")
TRUNCATED = _counter("texts_truncated", "Texts answered that were truncated to the model's window.", "model")
DUPLICATES = _counter("texts_deduplicated", "Texts not computed because an equal text of any request was.", "model")
DROPPED = _counter(
    "texts_dropped", "Waiting texts not computed because their request timed out or its client left.", "reason"
)
BAD_VECTORS = _counter("bad_vectors", "Vectors that held NaN or infinity; their requests got 500.", "model")

# Batches

BATCH_TEXTS = _histogram("batch_texts", "Texts of a batch.", "model", buckets=_TEXTS)
BATCH_SECONDS = _histogram("batch_duration_seconds", "Time to compute a batch.", "model", buckets=_SECONDS)
BATCH_FAILURES = _counter("batch_failures", "Batches for which the backend raised an error.", "model")
COMPUTED_TOKENS = _counter("computed_tokens", "Tokens computed in batches, padding included.", "model")
PADDING_TOKENS = _counter("padding_tokens", "Padding tokens computed in batches.", "model")
BATCHES_IN_PROGRESS = _gauge_of_workers("batches_in_progress", "Batches being computed.")

# The queue

QUEUE_TEXTS = _gauge_of_workers("queue_texts", "Texts that wait for a free core.")
QUEUE_TOKENS = _gauge_of_workers("queue_tokens", "Tokens of the texts that wait for a free core.")
QUEUE_LIMIT = _gauge_of_server("queue_limit_tokens", "Tokens that may wait: MAX_QUEUED_TOKENS, or as measured.")

# The server

WORKERS = _gauge_of_server("workers", "Workers alive.")
WORKERS_WANTED = _gauge_of_server("workers_wanted", "Workers that should be alive.")
RESTARTS = _counter("worker_restarts", "Workers that ended while the server went on, for any reason.")
MODEL_INFO = _gauge_of_server(
    "model_info", "1 for each model served.", "model", "backend", "precision", "dimensions", "max_input_tokens"
)
BUILD_INFO = _gauge_of_server("build_info", "1 for the running version.", "version")

# The metrics of a model, which start at 0 when it is loaded.
OF_A_MODEL = (TEXTS, TOKENS, TRUNCATED, DUPLICATES, BAD_VECTORS, BATCH_TEXTS, BATCH_SECONDS, BATCH_FAILURES,
              COMPUTED_TOKENS, PADDING_TOKENS)  # fmt: skip
# The reasons for dropping a text, which start at 0 as well.
for _reason in ("client_gone", "deadline"):
    DROPPED.labels(_reason)
