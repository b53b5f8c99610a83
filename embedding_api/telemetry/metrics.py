"""What the service counts, as GET /metrics shows it: the names, their labels and units, and nothing else.

Buckets are in seconds unless the name says otherwise.
"""

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics, values

from embedding_api.telemetry import counters

# One line less for each number; nothing here is reset while the server lives.
disable_created_metrics()  # type: ignore[no-untyped-call]

# Where the numbers of all of them are, also if the environment names a folder for prometheus_client's own way.
values.ValueClass = counters.Value

# From a cached short text to REQUEST_TIMEOUT_S's default.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def _counter(name: str, help_: str, *labels: str) -> Counter:
    return Counter(f"embeddings_{name}", help_, labels, registry=None)


def _histogram(name: str, help_: str, *labels: str, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(f"embeddings_{name}", help_, labels, buckets=buckets, registry=None)


def _gauge_of_workers(name: str, help_: str) -> Gauge:
    """What each worker has in hand, summed over those that live."""
    return Gauge(f"embeddings_{name}", help_, multiprocess_mode="livesum", registry=None)


def _gauge_of_server(name: str, help_: str, *labels: str) -> Gauge:
    """What the master alone says."""
    return Gauge(f"embeddings_{name}", help_, labels, multiprocess_mode="max", registry=None)


# Requests

REQUESTS = _counter(
    "http_requests",
    "Requests answered. Route and method are - where there is no such, model is empty where none was computed with.",
    "route",
    "method",
    "status",
    "model",
)
REFUSED = _counter(
    "requests_refused", "Requests answered with an error, by its code, such as server_overloaded.", "reason"
)
IN_PROGRESS = _gauge_of_workers("requests_in_progress", "Requests that have arrived whole and are not answered.")
CLIENTS_GONE = _counter("clients_gone", "Requests whose client left before they were answered.")
STAGES = _histogram(
    "request_duration_seconds",
    "Time of a request that was answered with vectors: total, and of it tokenize, queue and inference.",
    "model",
    "stage",
    buckets=_SECONDS,
)

# Texts

TEXTS = _counter("texts", "Texts answered with their vectors.", "model")
TOKENS = _counter("tokens", "Tokens of the texts answered, as in usage.prompt_tokens.", "model")
TRUNCATED = _counter("texts_truncated", "Texts answered that were cut to the model's window.", "model")
DUPLICATES = _counter("texts_deduplicated", "Texts not computed since the same text was on its way.", "model")
DROPPED = _counter("texts_dropped", "Waiting texts not computed: their request's time was over, or its client left.",
                   "reason")  # fmt: skip
BAD_VECTORS = _counter("bad_vectors", "Vectors with NaN or infinity in them; their requests got 500.", "model")

# Batches

BATCH_TEXTS = _histogram("batch_texts", "Texts of a batch, which are its rows.", "model", buckets=_TEXTS)
BATCH_SECONDS = _histogram("batch_duration_seconds", "Time that a batch took to compute.", "model", buckets=_SECONDS)
BATCH_FAILURES = _counter("batch_failures", "Batches for which the backend raised an error.", "model")
COMPUTED_TOKENS = _counter("computed_tokens", "Tokens computed in batches, padding included.", "model")
PADDING_TOKENS = _counter("padding_tokens", "Tokens computed in batches that were no text's.", "model")
BATCHES_IN_PROGRESS = _gauge_of_workers("batches_in_progress", "Batches that a core computes now.")

# The queue

QUEUE_TEXTS = _gauge_of_workers("queue_texts", "Texts that wait for a core.")
QUEUE_TOKENS = _gauge_of_workers("queue_tokens", "Tokens of the texts that wait for a core.")
QUEUE_LIMIT = _gauge_of_server("queue_limit_tokens", "Tokens that may wait: MAX_QUEUED_TOKENS, or what was measured.")

# The server

WORKERS = _gauge_of_server("workers", "Workers alive.")
WORKERS_WANTED = _gauge_of_server("workers_wanted", "Workers that there should be.")
RESTARTS = _counter("worker_restarts", "Workers that ended while the server went on, for whatever reason.")
MODEL_INFO = _gauge_of_server(
    "model_info",
    "1 for each model that is served.",
    "model",
    "backend",
    "precision",
    "dimensions",
    "max_input_tokens",
)
BUILD_INFO = _gauge_of_server("build_info", "1 for the version that runs.", "version")

# Those of a model, which begin at 0 when it is loaded.
OF_A_MODEL = (TEXTS, TOKENS, TRUNCATED, DUPLICATES, BAD_VECTORS, BATCH_TEXTS, BATCH_SECONDS, BATCH_FAILURES,
              COMPUTED_TOKENS, PADDING_TOKENS)  # fmt: skip
# These begin at 0, too.
for _reason in ("client_gone", "deadline"):
    DROPPED.labels(_reason)
