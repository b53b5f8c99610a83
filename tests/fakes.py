"""A model without torch: a real tokenizer of a few words, vectors computed from token ids, and faults on demand."""

import dataclasses
import threading

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from embedding_api.engine.backends import Route
from embedding_api.engine.backends.proof import Proof
from embedding_api.engine.backends.text import NO_PROMPT, Prompt, Reader
from embedding_api.engine.engine import Engine
from embedding_api.engine.models.registry import Model, Registry
from embedding_api.engine.scheduling.cost import Cost
from embedding_api.engine.work import Result
from embedding_api.engine.workers.setup import Setup

DIM = 8
WINDOW = 16
QUERY = Prompt("query: ")


def word_tokenizer() -> Tokenizer:
    """Return a tokenizer with one token a word, [CLS] before the text and [SEP] after it."""
    words = ["[UNK]", "[CLS]", "[SEP]", "a", "cat", "kitten", "tax", "law", "query:"]
    tokenizer = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def vector(ids) -> np.ndarray:
    """Return the unit vector of these ids, float32, (DIM,). Other ids have other vectors."""
    raw = np.random.default_rng(list(map(int, ids))).normal(size=DIM)
    return (raw / np.linalg.norm(raw)).astype(np.float32)


class FakeBackend:
    """A backend whose batches a test can read, delay and make fail."""

    name, precision, dim = "fake", "float32", DIM
    max_batches_per_thread = 3

    def __init__(self, target_batch_tokens=64):
        self.target_batch_tokens = target_batch_tokens
        self.batches = []
        self.n_prompt_tokens = []
        self.prepared_in = None
        self.n_threads = 1
        self.error = None
        self.value = None
        self.entered = threading.Event()
        self.proceed = threading.Event()
        self.proceed.set()

    def prepare(self, n_threads):
        self.n_threads = n_threads
        self.prepared_in = threading.current_thread().name

    def use_threads(self, n_threads):
        self.n_threads = n_threads

    def n_computed(self, n_texts, longest, n_tokens):
        return n_texts * longest

    def compute(self, inputs, n_prompt_tokens):
        self.batches.append([len(ids) for ids in inputs])
        self.n_prompt_tokens.append(n_prompt_tokens)
        self.entered.set()
        assert self.proceed.wait(30), "a test held a batch back and never let it go"
        if self.error is not None:
            raise self.error
        vectors = np.stack([vector(ids) for ids in inputs])
        return Result(vectors if self.value is None else np.full_like(vectors, self.value))


def fake_route(backend=None, **changes) -> Route:
    parts = {
        "reader": Reader(word_tokenizer(), window=WINDOW),
        "backend": backend or FakeBackend(),
        "prompt": NO_PROMPT,
        "prompts": {"query": QUERY, "law": Prompt("law ")},
        "reference": np.eye(DIM, dtype=np.float32),
    }
    return Route(**{**parts, **changes})


def fake_model(name="org/fake", names=None, routes=None, **changes) -> Model:
    """Return a model with one route and a prompt for queries. `changes` are those of the route."""
    route = fake_route(**changes)
    return Model(
        name=name,
        names=names or (name,),
        owner=name.partition("/")[0],
        loaded_at=1_700_000_000,
        routes=routes or {None: route, "query": dataclasses.replace(route, prompt=QUERY)},
        proof=Proof("largest_difference", 1e-7, 2e-6),
    )


# A batch's start costs as much as eight tokens.
COST = Cost(start_s=8e-4, token_s=1e-4)


def fake_workers(models: Registry, **options) -> Setup:
    return Setup(list(models.backends.values()), list(models.backends), [COST] * len(models.backends), **options)


def fake_engine(*served, accepts_token_ids=False, **options) -> Engine:
    """Return an engine of fake models. `options` are those of `Setup`."""
    models = Registry(served or [fake_model()])
    return Engine(models, fake_workers(models, **options), accepts_token_ids=accepts_token_ids)
