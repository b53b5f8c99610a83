"""The check of a device: its bounds, and the sizes for which there is time."""

import time

import numpy as np
import pytest

from bench.device import bounds
from bench.device.sweep import KINDS, Pace, sweep
from bench.texts import Shelf

REFERENCE = np.array([[3, 4], [0, 2]], dtype=np.float32)
NUDGED = np.array([[3, 4], [0.04, 2]], dtype=np.float32)
WORDS = [f"word{number}" for number in range(10_000)]


@pytest.mark.parametrize(
    ("precision", "vectors", "complaint"),
    [
        ("float32", REFERENCE * (1 + 9e-6), ""),
        ("float32", REFERENCE * (1 + 2e-5), "the largest difference to the CPU's vectors is "),
        ("float32", REFERENCE * np.float32("nan"), "its vectors hold NaN or infinity"),
        ("float16", REFERENCE * 1.01, ""),
        ("float16", NUDGED, "the cosine to the CPU's vectors is 0.9998"),
        ("bfloat16", NUDGED, ""),
        ("bfloat16", -REFERENCE, "the cosine to the CPU's vectors is -"),
    ],
)
def test_vectors_beyond_the_bound_of_a_precision_break_it(precision, vectors, complaint):
    vectors = np.asarray(vectors, dtype=np.float32)
    compared = bounds.compare(REFERENCE, vectors, precision)
    messages = bounds.broken(compared, vectors)
    assert compared["holds"] is not bool(complaint)
    assert len(messages) == bool(complaint)
    assert all(message.startswith(complaint) for message in messages)


def test_sizes_are_measured_as_far_as_there_is_time():
    """Given a second for each text, and eight for each size."""
    sent = []

    def run(requests, limit_s):
        sent.append([len(texts) for texts in requests])
        return {"elapsed_s": float(sum(map(len, requests))), "requests": len(requests), "tokens": 7}

    pace = Pace(sizes=(1, 2, 4, 8), point_s=0.5, most_s=8)
    found = sweep(pace, Shelf(WORDS), run, 1, time.monotonic() + 1000)

    assert [(point["kind"], point["texts"], point["tokens"]) for point in found.points] == [
        ("short", 1, 7), ("full", 1, 7), ("short", 2, 7), ("full", 2, 7),
    ]  # fmt: skip
    assert {point["texts_per_s"] for point in found.points} == {1.0}
    assert found.points[-1]["request_ms"] == 2000
    # A round that warms up, and two that count.
    assert sent[:2] == [[1], [1, 1]]
    assert [line.split(":")[1] for line in found.left_out] == [" from 4 texts on, for want of time"] * len(KINDS)


def test_a_size_that_takes_much_longer_than_expected_is_not_measured_again():
    def run(requests, limit_s):
        return {"elapsed_s": 7.0, "requests": len(requests)}

    found = sweep(Pace(sizes=(1,), most_s=8), Shelf(WORDS), run, 2, time.monotonic() + 1000)
    assert [(point["requests"], point["request_ms"]) for point in found.points] == [(2, 7000.0)] * len(KINDS)


def test_after_the_end_nothing_is_measured():
    def run(requests, limit_s):
        raise AssertionError("it began a size")

    found = sweep(Pace(), Shelf(WORDS), run, 1, time.monotonic() - 1)
    assert (found.points, len(found.left_out)) == ([], len(KINDS))
