"""The trace of an embedding request: which spans lie below the request's own, and what their attributes are."""

import time
from typing import TYPE_CHECKING

from embedding_api.engine.engine import Embeddings
from embedding_api.engine.scheduling.timing import Timing

if TYPE_CHECKING:
    # OpenTelemetry is optional.
    from embedding_api.telemetry.tracing import Attributes, RequestSpan

# Batches of one request that get a span. 2048 long texts make as many batches, which would fill the exporter's queue.
MAX_BATCH_SPANS = 100


def attributes(embeddings: Embeddings) -> "Attributes":
    """Return the attributes of a request's span; named by OpenTelemetry's conventions for generative AI if possible."""
    n_texts, dim = embeddings.vectors.shape
    return {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.request.model": embeddings.model.name,
        "gen_ai.usage.input_tokens": embeddings.n_tokens,
        "gen_ai.embeddings.dimension.count": dim,
        "texts": n_texts,
    }


def add_stages(request: "RequestSpan", timing: Timing) -> None:
    """Add a span for each stage that a request reached. A stage that has not ended ends now."""
    now_s = time.monotonic()
    if timing.read_s is not None:
        request.add("tokenize", timing.read_s, timing.queued_s or now_s)
    # A request without either moment was refused before its texts reached the queue.
    queue_ended_s = timing.begun_s or timing.ended_s
    if timing.queued_s is not None and queue_ended_s is not None:
        request.add("queue", timing.queued_s, queue_ended_s)
    if timing.begun_s is not None:
        ended_s = timing.ended_s or now_s
        inference = request.add("inference", timing.begun_s, ended_s, {"batches": len(timing.trips)})
        for trip in timing.trips[:MAX_BATCH_SPANS]:
            known: Attributes = {
                "batch.id": trip.batch,
                "batch.texts": trip.n_texts,
                "batch.tokens": trip.n_tokens,
                "batch.seat": trip.seat,
                "batch.ended": trip.ended_s is not None,
            }
            request.add("batch", trip.begun_s, trip.ended_s or ended_s, known, above=inference)
