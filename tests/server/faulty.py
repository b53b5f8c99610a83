"""The real service and the real model, with a backend that fails if a text contains one of these words."""

import dataclasses
import time

import numpy as np

from embedding_api.app import create_app
from embedding_api.engine.models.registry import Registry
from embedding_api.engine.start import load_models, make_engine
from embedding_api.settings import load_settings
from embedding_api.telemetry import log

# The application that Gunicorn runs. It is a call, so that a test that imports only the words loads no model.
APP = "tests.server.faulty:make_app()"

# Each word causes a fault in the batch that contains it, or in its own vector.
RAISES, HANGS, SPOILS, SLOW = "volcano", "glacier", "desert", "river"

# Seconds that a batch with the slow word takes.
SLOW_S = 0.5


class Faulty:
    """A model's backend, with the faults that the words cause."""

    def __init__(self, backend, reader):
        self._backend = backend
        self._ids = {word: int(reader.read([word]).tokens[0].ids[1]) for word in (RAISES, HANGS, SPOILS, SLOW)}

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def _has(self, word, ids):
        return self._ids[word] in ids

    def compute(self, inputs, n_prompt_tokens):
        if any(self._has(RAISES, ids) for ids in inputs):
            raise RuntimeError("the backend was told to raise")
        if any(self._has(HANGS, ids) for ids in inputs):
            time.sleep(3600)
        if any(self._has(SLOW, ids) for ids in inputs):
            time.sleep(SLOW_S)
        result = self._backend.compute(inputs, n_prompt_tokens)
        result.values[[self._has(SPOILS, ids) for ids in inputs]] = np.nan
        return result


def faulty(model):
    route = model.route
    return dataclasses.replace(
        model, routes={None: dataclasses.replace(route, backend=Faulty(route.backend, route.reader))}
    )


def make_app():
    settings = load_settings()
    log.configure(settings)
    models = [faulty(model) for model in load_models(settings).models]
    return create_app(settings, make_engine(Registry(models), settings))
