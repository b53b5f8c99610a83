"""GET /docs and its files. A browser opens it in tests/server."""

import re
from urllib.parse import urljoin

import pytest

from embedding_api.web.routes.docs import FILES


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
def test_all_that_the_page_links_to_is_served_beside_it(client, path):
    """Also below a path that a proxy puts before it: no link begins with a slash."""
    html = client.get(path).text
    links = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert {urljoin(path, link) for link in links} == {f"/docs/{name}" for name in FILES}
    assert not [link for link in links if link.startswith(("/", "http"))]


@pytest.mark.parametrize("path", ["/docs", *(f"/docs/{name}" for name in FILES), "/docs/nothing"])
def test_the_page_and_its_files_let_nothing_come_from_elsewhere(client, path):
    headers = client.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert {words for name, words in policy.items() if words != "'none'"} == {"'self'", "'self' data:"}
    assert policy["img-src"] == "'self' data:"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_each_file_comes_whole_and_as_what_it_is(client):
    for name, (folder, content_type) in FILES.items():
        response = client.get(f"/docs/{name}")
        assert response.content_type == content_type
        assert response.data == (folder / name).read_bytes()


@pytest.mark.parametrize(
    "name", ["docs.html", "swagger-ui.js", "index.html", "..", "../docs.py", "%2e%2e%2fdocs.py", "..%5cdocs.py", "\0"]
)
def test_no_other_file_can_be_reached(client, name):
    assert client.get(f"/docs/{name}").status_code == 404


def test_nobody_outside_is_asked_whether_the_document_is_valid(client):
    assert "validatorUrl: null" in client.get("/docs/docs.js").text
