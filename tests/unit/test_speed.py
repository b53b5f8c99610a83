"""The cost of a batch is measured from the backend."""

import pytest

from embedding_api.engine.models.speed import measure
from tests.fakes import FakeBackend


@pytest.mark.parametrize("window", [None, 512, 16])
def test_a_cost_is_measured_from_the_backend_within_its_window(monkeypatch, window):
    """Given a clock that each batch moves by 2 s plus 0.01 s a padded token, then the cost has these two values."""
    clock = [0.0]
    monkeypatch.setattr("embedding_api.engine.models.speed.time.perf_counter", lambda: clock[0])

    class Timed(FakeBackend):
        def compute(self, inputs, n_prompt_tokens):
            assert max(map(len, inputs)) <= (window or 64)
            clock[0] += 2.0 + 0.01 * len(inputs) * max(map(len, inputs))
            return super().compute(inputs, n_prompt_tokens)

    assert measure(Timed(), window) == pytest.approx((2.0, 0.01))
