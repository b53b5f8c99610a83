"""GET /docs and its files. tests/server opens it in a browser."""

import re
from urllib.parse import urljoin

import pytest

from embedding_api.web.routes.docs import FILES


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
def test_every_file_that_the_page_links_to_is_served_beside_it(client, path):
    """No link begins with a slash, so that the page works below the path of a proxy."""
    html = client.get(path).text
    links = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert {urljoin(path, link) for link in links} == {f"/docs/{name}" for name in FILES}
    assert not [link for link in links if link.startswith(("/", "http"))]


@pytest.mark.parametrize("path", ["/docs", *(f"/docs/{name}" for name in FILES), "/docs/nothing"])
def test_the_page_and_its_files_load_nothing_from_other_servers(client, path):
    headers = client.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert {words for name, words in policy.items() if words != "'none'"} == {"'self'", "'self' data:"}
    assert policy["img-src"] == "'self' data:"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_each_file_is_served_whole_with_its_content_type(client):
    for name, (folder, content_type) in FILES.items():
        response = client.get(f"/docs/{name}")
        assert response.content_type == content_type
        assert response.data == (folder / name).read_bytes()


@pytest.mark.parametrize(
    "name", ["docs.html", "swagger-ui.js", "index.html", "..", "../docs.py", "%2e%2e%2fdocs.py", "..%5cdocs.py", "\0"]
)
def test_no_other_file_is_served(client, name):
    assert client.get(f"/docs/{name}").status_code == 404


def test_the_page_asks_no_other_server_to_validate_the_document(client):
    assert "validatorUrl: null" in client.get("/docs/docs.js").text
