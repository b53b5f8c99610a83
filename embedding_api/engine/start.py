"""Build the engine in the process that will fork: find, load, prove, warm up and measure the models, set the limits."""

import contextlib
import logging
import time
from functools import partial

from embedding_api.engine.backends import devices
from embedding_api.engine.engine import Engine
from embedding_api.engine.models import alone, choice, snapshots, sources, speed
from embedding_api.engine.models.alone import Threads
from embedding_api.engine.models.checksums import Checksums
from embedding_api.engine.models.inspection import Inspected, inspected, require_trust_used
from embedding_api.engine.models.registry import Model, Registry
from embedding_api.engine.scheduling import cost
from embedding_api.engine.scheduling.admission import Limits
from embedding_api.engine.workers.exchange import WORKERS_CAN_SEND, Exchange
from embedding_api.engine.workers.setup import Setup
from embedding_api.machine import cores, memory
from embedding_api.request import MAX_HEAD_BYTES
from embedding_api.settings import Settings
from embedding_api.telemetry import metrics

logger = logging.getLogger(__name__)

# Seconds of work that may wait where MAX_QUEUED_TOKENS is not set: half of the default of REQUEST_TIMEOUT_S.
_QUEUE_S = 30

# Bytes of a request body for each token that may wait. A token has about 5 bytes, and JSON may escape each as 6.
_BYTES_PER_TOKEN = 32

# The assumed speed of a device, which cannot be measured before the fork. An estimate: nobody has measured one.
_DEVICE_TOKENS_PER_S = 30_000


def load_engine(settings: Settings) -> Engine:
    """Load the models of the settings and build the engine that serves them.

    Raises:
        StartError: A model cannot be served, or the device cannot be used; the message says why and what to do.
    """
    return make_engine(load_models(settings), settings)


def load_models(settings: Settings) -> Registry:
    """Find, inspect, convert, load and prove every model.

    Raises:
        DeviceNotFoundError: The machine does not have the device.
        ModelLoadError: A model cannot be found, loaded or proven.
        SettingsError: TRUST_REMOTE_CODE names nothing that is served.
    """
    memory.prepare()
    devices.require(settings.device)
    checksums = Checksums(settings.cache_dir / "checksums")
    fetch = partial(sources.fetch_code, settings=settings)
    with contextlib.ExitStack() as stack:
        # All models are found before the first is loaded, so that a missing one ends the start at once.
        located = [(spec, sources.locate(spec, settings, checksums)) for spec in settings.supported_models]
        models = [stack.enter_context(inspected(spec, source, settings, fetch)) for spec, source in located]
        require_trust_used(models, settings)
        registry = Registry([_load(model, settings, checksums) for model in models])
    checksums.save()
    return registry


def make_engine(models: Registry, settings: Settings) -> Engine:
    """Warm up and measure loaded models, freeze the memory that workers will share, and set the limits of the queue.

    Args:
        models: The loaded models.
        settings: The settings of the service.
    """
    windows = {route.backend: route.reader.window for model in models.models for route in model.routes.values()}
    # A device cannot be used before the fork.
    on_cpu = settings.device == "cpu"
    if on_cpu:
        for backend, window in windows.items():
            backend.warm_up(window)
    costs = [speed.measure(each, windows[each]) if on_cpu else cost.UNMEASURED for each in models.backends]
    memory.freeze()
    n_computing = min(settings.workers, cores.count()) if on_cpu else 1
    threads = Threads.of(settings)
    solo = alone.measure(models.backends, windows, threads.n_alone) if on_cpu else alone.NOT_MEASURED
    has_soloist = threads.n_alone > threads.n_batch
    # The rate of the slowest backend, so that no full queue takes longer than _QUEUE_S.
    slowest = min(map(cost.tokens_per_s, costs, [backend.target_batch_tokens for backend in models.backends]))
    limits = _limits(settings, n_computing * slowest if on_cpu else _DEVICE_TOKENS_PER_S)
    _log(settings, limits, n_computing, threads.n_batch)
    _publish(models, limits)
    setup = Setup(
        names=list(models.backends.values()),
        backends=list(models.backends),
        costs=costs,
        exchange=Exchange(settings.max_workers) if WORKERS_CAN_SEND else None,
        n_computing=n_computing,
        n_threads=threads.n_batch,
        solo_tokens=solo.worth_tokens if has_soloist else (),
        n_solo_threads=solo.n_threads,
        limits=limits,
        inference_timeout_s=settings.inference_timeout_s,
    )
    return Engine(models, setup, accepts_token_ids=settings.token_ids == "model")  # noqa: S105 - no password


def _load(model: Inspected, settings: Settings, checksums: Checksums) -> Model:
    """Load and prove one model, and log what serves it."""
    started = time.monotonic()
    loaded = choice.load(model, settings, checksums)
    revision = snapshots.revision(model.spec, model.source)
    fields = {
        "model": loaded.name,
        "source": model.spec.source,
        **({} if revision is None else {"revision": revision}),
        "folder": str(model.source),
        "backend": loaded.backend,
        "precision": loaded.precision,
        "dimensions": loaded.dimensions,
        "window": loaded.window,
        "against_sentence_transformers": str(loaded.proof),
        "load_s": round(time.monotonic() - started, 1),
    }
    logger.info("model loaded", extra={"fields": fields})
    return loaded


def _limits(settings: Settings, rate: float) -> Limits:
    """Return how much may wait.

    Args:
        settings: MAX_QUEUED_TOKENS and MAX_BODY_BYTES matter.
        rate: Tokens per second of all workers.
    """
    n_tokens = settings.max_queued_tokens or round(_QUEUE_S * rate)
    # Two requests of the largest size fit in any case.
    n_bytes = max(_BYTES_PER_TOKEN * n_tokens, 2 * (settings.max_body_bytes + MAX_HEAD_BYTES))
    return Limits(n_tokens, n_bytes, rate)


def _publish(models: Registry, limits: Limits) -> None:
    """Set the metrics that are known at the start, and begin those of each model at 0."""
    metrics.QUEUE_LIMIT.set(limits.n_tokens)
    for model in models.models:
        info = metrics.MODEL_INFO
        info.labels(model.name, model.backend, model.precision, model.dimensions, model.window or "").set(1)
        for metric in metrics.OF_A_MODEL:
            metric.labels(model.name)


def _log(settings: Settings, limits: Limits, n_computing: int, n_threads: int) -> None:
    """Log who computes; and how much may wait, how many tokens per second are computed, and the time-outs."""
    topology = {
        "device": settings.device,
        "cores": cores.count(),
        "workers": settings.workers,
        "computing": n_computing,
        "threads_per_inference": n_threads,
        "exchange": WORKERS_CAN_SEND and settings.workers > 1,
        "requests_per_worker": settings.threads,
    }
    logger.info("topology", extra={"fields": topology})
    fields = {
        "queued_tokens": limits.n_tokens,
        "tokens_per_s": round(limits.tokens_per_s),
        "held_bytes": limits.n_bytes,
        "body_bytes": settings.max_body_bytes,
        "inputs": settings.max_inputs,
        "request_s": settings.request_timeout_s,
        "client_s": settings.client_timeout_s,
        "inference_s": settings.inference_timeout_s,
        "drain_s": settings.drain_s,
        "grace_s": settings.graceful_timeout_s,
    }
    logger.info("limits", extra={"fields": fields})
