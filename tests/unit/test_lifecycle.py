"""A worker's phases depend on events and their times. The code reads no clock, so the tests give each time."""

import pytest

from embedding_api.server.lifecycle import Lifecycle, Phase


def phases(lifecycle, moments, *, is_told_to_stop=True, server_stops=False, n_connections=1):
    """Return the phase at each moment. Moments are in seconds."""
    given = {"is_told_to_stop": is_told_to_stop, "server_stops": server_stops, "n_connections": n_connections}
    return [lifecycle.advance(now_s, **given) for now_s in moments]


def test_a_worker_serves_until_it_is_told_to_stop():
    lifecycle = Lifecycle(drain_s=5, grace_s=30)
    assert phases(lifecycle, [0, 1000], is_told_to_stop=False, n_connections=0) == [Phase.SERVING] * 2


def test_a_worker_that_is_renewed_accepts_nothing_more_and_winds_up_after_a_moment():
    lifecycle = Lifecycle(drain_s=5, grace_s=30)
    assert phases(lifecycle, [100, 100.1, 100.2, 127.9]) == [
        Phase.SETTLING,
        Phase.SETTLING,
        Phase.WINDING_UP,
        Phase.WINDING_UP,
    ]
    assert not Phase.SETTLING.accepts
    assert not Phase.WINDING_UP.accepts


def test_a_server_that_stops_drains_first_though_its_worker_learns_of_it_late():
    lifecycle = Lifecycle(drain_s=5, grace_s=30)
    assert phases(lifecycle, [100]) == [Phase.SETTLING]
    assert phases(lifecycle, [100.1, 104.9, 105], server_stops=True) == [
        Phase.DRAINING,
        Phase.DRAINING,
        Phase.WINDING_UP,
    ]
    assert Phase.DRAINING.accepts


def test_without_a_drain_a_server_that_stops_still_settles():
    lifecycle = Lifecycle(drain_s=0, grace_s=30)
    assert phases(lifecycle, [100, 100.2], server_stops=True) == [Phase.SETTLING, Phase.WINDING_UP]


def test_a_worker_ends_when_its_last_connection_has_closed():
    lifecycle = Lifecycle(drain_s=0, grace_s=30)
    assert phases(lifecycle, [100], n_connections=0) == [Phase.SETTLING]
    assert phases(lifecycle, [101], n_connections=1) == [Phase.WINDING_UP]
    assert phases(lifecycle, [102], n_connections=0) == [Phase.ENDED]


@pytest.mark.parametrize(("grace_s", "last_s"), [(30, 28), (4, 3)])
def test_a_worker_ends_in_time_before_its_master_kills_it(grace_s, last_s):
    lifecycle = Lifecycle(drain_s=0, grace_s=grace_s)
    assert phases(lifecycle, [100, 100 + last_s - 0.1, 100 + last_s]) == [
        Phase.SETTLING,
        Phase.WINDING_UP,
        Phase.ENDED,
    ]


def test_a_worker_that_hangs_gives_others_time_then_gives_up_then_ends():
    lifecycle = Lifecycle(drain_s=5, grace_s=30)
    lifecycle.retire(100)
    assert lifecycle.is_retired
    assert phases(lifecycle, [100, 104.9, 105, 105.9, 106], server_stops=True) == [
        Phase.RETIRING,
        Phase.RETIRING,
        Phase.REFUSING,
        Phase.REFUSING,
        Phase.ENDED,
    ]


def test_a_worker_that_hangs_ends_as_soon_as_all_its_clients_have_their_answers():
    lifecycle = Lifecycle(drain_s=5, grace_s=30)
    lifecycle.retire(100)
    assert phases(lifecycle, [100.1], n_connections=0) == [Phase.ENDED]


def test_a_second_hang_does_not_lengthen_the_end():
    lifecycle = Lifecycle(drain_s=5, grace_s=30)
    lifecycle.retire(100)
    lifecycle.retire(104)
    assert phases(lifecycle, [106]) == [Phase.ENDED]
