"""All routes are in web.ROUTES, and each needs a key unless it is on the open list."""

import hmac
from pathlib import Path

import pytest
from flask import Blueprint

from embedding_api.web import ROUTES, routes
from embedding_api.web.auth import OPEN_ENDPOINTS

pytestmark = pytest.mark.settings(API_KEY_SECRET="first,second,third")


def answers_without_a_key(app) -> set[str]:
    """Return the endpoints with a method that answers with another status than 401."""
    client = app.test_client()
    endpoints = set()
    for rule in app.url_map.iter_rules():
        _, path = rule.build(dict.fromkeys(rule.arguments, 1))
        if any(client.open(path, method=method).status_code != 401 for method in rule.methods):
            endpoints.add(rule.endpoint)
    return endpoints


def test_every_file_of_routes_is_in_the_list():
    files = {file.stem for file in Path(routes.__file__).parent.glob("*.py")} - {"__init__"}
    assert {module.__name__.rpartition(".")[2] for module in ROUTES} == files


def test_every_route_needs_a_key_or_is_on_the_open_list(app):
    assert answers_without_a_key(app) == OPEN_ENDPOINTS


def test_the_open_list_holds_no_more_than_health_and_documentation():
    health = {"health.get_service", "health.get_live", "health.get_ready"}
    assert health | {"openapi.get_openapi", "docs.get_docs", "docs.get_docs_file"} == OPEN_ENDPOINTS


@pytest.fixture
def added(app):
    """Routes that a developer adds later and forgets to protect with a key."""
    bp = Blueprint("later", __name__)
    bp.add_url_rule("/later/<int:number>/<path:rest>", "one", lambda **_: "secret", methods=["GET", "PUT", "DELETE"])
    app.register_blueprint(bp, url_prefix="/health")
    app.add_url_rule("/later", "two", lambda: "secret", provide_automatic_options=True)
    return {"later.one", "two"}


def test_a_route_that_is_added_later_needs_a_key(app, client, added):
    assert answers_without_a_key(app) == OPEN_ENDPOINTS
    for key, status in (("first", 200), ("fourth", 401)):
        assert client.get("/later", headers={"Authorization": f"Bearer {key}"}).status_code == status


def test_the_walk_finds_every_route_without_a_check(app, added):
    """A test of `answers_without_a_key` itself."""
    app.before_request_funcs[None] = [
        hook for hook in app.before_request_funcs[None] if hook.__module__ != "embedding_api.web.auth"
    ]
    assert answers_without_a_key(app) == OPEN_ENDPOINTS | added | {
        "embeddings.create_embeddings",
        "metrics.get_metrics",
        "models.list_models",
        "models.get_model",
    }


@pytest.mark.parametrize("given", ["first", "third", "none of them"])
def test_every_key_is_compared_in_constant_time_whichever_matches(client, monkeypatch, given):
    asked = []

    def compare(one, other):
        asked.append({bytes(one), bytes(other)})
        return constant_time(one, other)

    constant_time = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    client.get("/v1/models", headers={"Authorization": f"Bearer {given}"})
    assert asked == [{given.encode(), key} for key in (b"first", b"second", b"third")]


@pytest.mark.parametrize(("matches", "given", "status"), [(False, "first", 401), (True, "none of them", 200)])
def test_nothing_but_that_comparison_decides(client, monkeypatch, matches, given, status):
    """`==` and `in` take longer the more of a key is right, and so reveal it."""
    monkeypatch.setattr(hmac, "compare_digest", lambda *_: matches)
    assert client.get("/v1/models", headers={"Authorization": f"Bearer {given}"}).status_code == status
