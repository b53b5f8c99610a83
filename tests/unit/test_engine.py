"""The engine and its workers: order of requests, threads, faults."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from embedding_api.engine.backends.text import Prompt, Reader
from embedding_api.engine.scheduling.timing import Timing
from embedding_api.errors import EmptyTextError, ModelNotFoundError, NonFiniteVectorError, NotReadyError, RequestError
from tests.fakes import DIM, QUERY, FakeBackend, fake_engine, fake_model, fake_route, vector, word_tokenizer


def wait_until_one_waits(engine, n_tokens=1):
    """Wait until `n_tokens` tokens wait behind the running batch."""
    deadline = time.monotonic() + 10
    while sum(engine.runner.seat.board.columns.waiting_tokens) < n_tokens:
        assert time.monotonic() < deadline, "no request was handed in"


@pytest.fixture
def backend():
    return FakeBackend()


@pytest.fixture
def engine(backend, no_leaked_threads):
    engine = fake_engine(fake_model("m", backend=backend))
    yield engine
    engine.close()


def test_no_thread_starts_before_the_engine_does(backend):
    before = threading.active_count()
    engine = fake_engine(fake_model("m", backend=backend))
    assert threading.active_count() == before
    engine.start()
    assert threading.active_count() == before + 2
    assert backend.prepared_in.startswith("inference")
    engine.close()


def test_what_preparing_raises_start_raises(backend):
    def prepare(n_threads):
        raise RuntimeError("no such device")

    backend.prepare = prepare
    engine = fake_engine(fake_model("m", backend=backend))
    with pytest.raises(RuntimeError, match="no such device"):
        engine.start()
    engine.close()


def test_vectors_come_in_the_order_of_the_texts(engine):
    texts = [" ".join(["cat"] * n) for n in range(14, 0, -1)] * 5
    got = engine.embed("m", texts)
    assert got.vectors.shape == (70, DIM)
    assert got.vectors.dtype == np.float32
    for text, row in zip(texts, got.vectors, strict=True):
        np.testing.assert_array_equal(row, vector([1, *[4] * len(text.split()), 2]))


def test_many_requests_at_once_each_get_their_own(engine):
    def embed(n):
        texts = [" ".join(["a"] * (n % 13 + 1)), " ".join(["law"] * (n % 7 + 1))]
        return texts, engine.embed("m", texts).vectors

    with ThreadPoolExecutor(16) as clients:
        for texts, rows in clients.map(embed, range(300)):
            for text, row in zip(texts, rows, strict=True):
                ids = [{"a": 3, "law": 7}[word] for word in text.split()]
                np.testing.assert_array_equal(row, vector([1, *ids, 2]))


def test_a_short_request_waits_for_one_batch_of_a_long_one_not_for_all(engine, backend):
    """Given a running request of many batches, when a short one comes, then it is computed right after the batch."""
    backend.proceed.clear()
    with ThreadPoolExecutor(2) as clients:
        texts = [" ".join(words) for words in itertools.product(["cat", "law"], repeat=7)]
        long = clients.submit(engine.embed, "m", texts)
        assert backend.entered.wait(10)
        short = clients.submit(engine.embed, "m", ["a"])
        wait_until_one_waits(engine, 9 * 128 - sum(backend.batches[0]) + 3)
        backend.proceed.set()
        short.result(10)
        long.result(10)
    assert any(3 in batch for batch in backend.batches[1:2])
    assert len(backend.batches) > 17


def test_a_fault_in_a_batch_reaches_its_request_and_no_other(engine, backend):
    backend.error = ValueError("broken")
    with pytest.raises(ValueError, match="broken"):
        engine.embed("m", ["a"])
    backend.error = None
    assert engine.embed("m", ["a"]).n_tokens == 3
    assert engine.problem() is None


def test_vectors_that_are_not_finite_are_never_given(engine, backend):
    backend.value = float("nan")
    with pytest.raises(NonFiniteVectorError):
        engine.embed("m", ["a"])


def test_an_unknown_model_costs_no_computing(engine, backend):
    with pytest.raises(ModelNotFoundError):
        engine.embed("n", ["a"])
    with pytest.raises(RequestError):
        engine.embed("m", ["a"], dimensions=DIM + 1)
    with pytest.raises(RequestError):
        engine.embed("m", ["a " * 99], truncate=False)
    assert backend.batches == []


def test_a_text_of_which_nothing_is_left_is_refused():
    model = fake_model("m", reader=Reader(word_tokenizer(), window=9, add_special_tokens=False))
    engine = fake_engine(model)
    with pytest.raises(EmptyTextError, match=r"input\[1\]"):
        engine.embed("m", ["a", "  "])
    engine.close()


def test_vectors_that_are_not_normalized_are_only_cut():
    backend = FakeBackend()
    backend.value = 2.0
    engine = fake_engine(fake_model("m", backend=backend, reference=2 * np.eye(DIM, dtype=np.float32)))
    assert engine.embed("m", ["a"], dimensions=3).vectors.tolist() == [[2.0, 2.0, 2.0]]
    engine.close()


def test_leading_components_that_are_all_zero_stay_zero():
    backend = FakeBackend()
    backend.value = 0.0
    engine = fake_engine(fake_model("m", backend=backend))
    assert engine.embed("m", ["a"], dimensions=3).vectors.tolist() == [[0.0, 0.0, 0.0]]
    engine.close()


def test_a_name_that_two_models_answer_to_belongs_to_the_public_one():
    by_source = fake_model("alias", names=("alias", "org/m"))
    by_name = fake_model("org/m")
    engine = fake_engine(by_source, by_name)
    assert engine.models.get("org/m") is by_name
    assert engine.models.get("alias") is by_source


def test_a_prompt_stands_before_each_text_and_is_counted(backend):
    engine = fake_engine(fake_model("m", backend=backend, prompt=Prompt("query: ", 2)), accepts_token_ids=True)
    got = engine.embed("m", ["a"])
    np.testing.assert_array_equal(got.vectors[0], vector([1, 8, 3, 2]))
    assert got.n_tokens == 4
    engine.embed("m", [[3]])
    assert backend.n_prompt_tokens == [2, 0]
    engine.close()


def test_texts_over_the_window_lose_the_side_that_the_tokenizer_says(backend):
    reader = Reader(word_tokenizer(), window=4, truncation_side="left")
    engine = fake_engine(fake_model("m", backend=backend, reader=reader))
    got = engine.embed("m", ["a cat tax law"])
    np.testing.assert_array_equal(got.vectors[0], vector([1, 6, 7, 2]))
    assert got.truncated == (True,)
    engine.close()


def test_without_a_window_nothing_is_cut(backend):
    engine = fake_engine(fake_model("m", backend=backend, reader=Reader(word_tokenizer(), window=None)))
    got = engine.embed("m", ["a " * 5000])
    assert (got.n_tokens, got.truncated) == (5002, (False,))
    engine.close()


def test_a_request_that_comes_while_the_process_ends_is_told(backend):
    engine = fake_engine(fake_model("m", backend=backend))
    engine.close()
    with pytest.raises(NotReadyError, match="stopping"):
        engine.embed("m", ["a"])


def test_a_request_whose_turn_does_not_come_any_more_is_told(backend):
    """Given a running batch and one behind it, when the engine closes, then one is computed and the other fails."""
    engine = fake_engine(fake_model("m", backend=backend))
    backend.proceed.clear()
    with ThreadPoolExecutor(3) as clients:
        first = clients.submit(engine.embed, "m", ["a"])
        assert backend.entered.wait(10)
        second = clients.submit(engine.embed, "m", ["cat"])
        wait_until_one_waits(engine)
        closing = clients.submit(engine.close)
        with pytest.raises(NotReadyError, match="this worker stops"):
            second.result(10)
        backend.proceed.set()
        assert first.result(10).n_tokens == 3
        closing.result(10)


def test_before_the_start_there_is_no_problem():
    engine = fake_engine()
    assert engine.problem() is None
    engine.close()


def test_the_timing_of_a_request_that_fails_is_told_as_far_as_it_came(engine, backend):
    backend.error = RuntimeError("no")
    timing = Timing()
    with pytest.raises(RuntimeError):
        engine.embed("m", ["cat"], timing=timing)
    assert timing.read_s <= timing.queued_s <= timing.handed_over_s <= timing.ended_s
    assert len(timing.runs) == 1
    refused = Timing()
    with pytest.raises(RequestError):
        engine.embed("m", ["cat " * 99], truncate=False, timing=refused)
    assert refused.tokenize_s > 0
    assert refused.handed_over_s is None
    assert refused.queue_s == refused.inference_s == 0


def test_a_route_of_its_own_computes_with_its_own_backend():
    """Given a model with another backend for queries, when both run at once, then each uses its own backend."""
    plain, query = FakeBackend(), FakeBackend()
    routes = {None: fake_route(plain), "query": fake_route(query, prompt=QUERY)}
    engine = fake_engine(fake_model("before"), fake_model("m", routes=routes))
    assert list(engine.models.backends.values()) == ["before", "m", "m"]
    with ThreadPoolExecutor(2) as clients:
        texts = [clients.submit(engine.embed, "m", ["a"] * 9, input_type=of) for of in (None, "query")]
        for done, ids in zip(texts, ([1, 3, 2], [1, 8, 3, 2]), strict=True):
            np.testing.assert_array_equal(done.result(10).vectors, [vector(ids)] * 9)
    assert (sum(map(sum, plain.batches)), sum(map(sum, query.batches))) == (3, 4)
    engine.close()
