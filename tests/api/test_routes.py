"""Which routes there are, and that each needs a key unless it is named open."""

import hmac

import pytest
from flask import Blueprint

from embedding_api.web.auth import OPEN_ENDPOINTS

pytestmark = pytest.mark.settings(API_KEY_SECRET="first,second,third")


def answers_without_a_key(app) -> set[str]:
    """The endpoints that answer any of their methods with anything but 401."""
    client = app.test_client()
    endpoints = set()
    for rule in app.url_map.iter_rules():
        _, path = rule.build(dict.fromkeys(rule.arguments, 1))
        if any(client.open(path, method=method).status_code != 401 for method in rule.methods):
            endpoints.add(rule.endpoint)
    return endpoints


def test_every_route_is_protected_or_named_open(app):
    assert answers_without_a_key(app) == OPEN_ENDPOINTS


def test_the_open_list_holds_no_more_than_health_and_documentation():
    health = {"health.index", "health.live", "health.ready"}
    assert health | {"openapi.show", "docs.page", "docs.file"} == OPEN_ENDPOINTS


@pytest.fixture
def added(app):
    """Routes as somebody may add them later, who thinks of no key."""
    bp = Blueprint("later", __name__)
    bp.add_url_rule("/later/<int:number>/<path:rest>", "one", lambda **_: "secret", methods=["GET", "PUT", "DELETE"])
    app.register_blueprint(bp, url_prefix="/health")
    app.add_url_rule("/later", "two", lambda: "secret", provide_automatic_options=True)
    return {"later.one", "two"}


def test_a_route_that_is_added_without_care_is_protected(app, client, added):
    assert answers_without_a_key(app) == OPEN_ENDPOINTS
    for key, status in (("first", 200), ("fourth", 401)):
        assert client.get("/later", headers={"Authorization": f"Bearer {key}"}).status_code == status


def test_a_route_that_no_check_protects_is_found(app, added):
    """The walk itself: without the check it finds them all."""
    app.before_request_funcs[None] = [
        hook for hook in app.before_request_funcs[None] if hook.__module__ != "embedding_api.web.auth"
    ]
    assert answers_without_a_key(app) == OPEN_ENDPOINTS | added | {
        "embeddings.create",
        "metrics.show",
        "models.index",
        "models.show",
    }


@pytest.mark.parametrize("given", ["first", "third", "none of them"])
def test_every_key_is_compared_in_constant_time_whichever_fits(client, monkeypatch, given):
    asked = []

    def compare(one, other):
        asked.append({bytes(one), bytes(other)})
        return constant_time(one, other)

    constant_time = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    client.get("/v1/models", headers={"Authorization": f"Bearer {given}"})
    assert asked == [{given.encode(), key} for key in (b"first", b"second", b"third")]


@pytest.mark.parametrize(("says", "given", "status"), [(False, "first", 401), (True, "none of them", 200)])
def test_nothing_but_that_comparison_decides(client, monkeypatch, says, given, status):
    """So that nobody shortens the way with `==` or `in`, whose time tells how much of a key is right."""
    monkeypatch.setattr(hmac, "compare_digest", lambda *_: says)
    assert client.get("/v1/models", headers={"Authorization": f"Bearer {given}"}).status_code == status
