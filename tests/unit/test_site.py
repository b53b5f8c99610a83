"""The manual in docs/ is a site that loads nothing from another host and has no broken links."""

import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests import documents
from tests.documents import ROOT

ARCHITECTURE = ROOT / "docs" / "architecture.md"

# Elements whose href a browser loads, without a click.
LOADED_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch", "manifest"}


class Resources(HTMLParser):
    """Collects the addresses that a browser loads to show a page."""

    def __init__(self):
        super().__init__()
        self.urls = set()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.urls |= {found[name] for name in ("src", "srcset", "poster", "data") if name in found}
        if tag == "link" and LOADED_LINKS & set(found.get("rel", "").split()):
            self.urls.add(found["href"])
        self.urls.update(outside_urls(found.get("style") or ""))

    def handle_data(self, data):
        self.urls.update(outside_urls(data) if self.lasttag == "style" else ())


def resources(page: str) -> set[str]:
    parser = Resources()
    parser.feed(page)
    return parser.urls


def outside_urls(css: str) -> set[str]:
    """Return the addresses on another host that a style sheet loads."""
    return set(re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""", css))


def is_outside(url: str) -> bool:
    return re.match(r"(\w+:)?//", url) is not None


def build(folder: Path, source: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # The options of the Makefile. With --quiet, MkDocs would count no warnings, and --strict would have no effect.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    return subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. Broken links and anchors fail the build."""
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize(
    ("name", "text"),
    [("api.md", "[x](nothing.md)"), ("api.md", "[x](models.md#nothing)"), ("omitted.md", "# A page outside of nav")],
)
def test_the_build_fails_on_a_link_that_leads_nowhere_and_on_a_page_that_is_left_out(tmp_path, name, text):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs" / name).open("a") as page:
        page.write(f"\n{text}\n")
    done = build(tmp_path / "site", tmp_path)
    assert done.returncode == 1
    assert "Aborted with 1 warnings in strict mode!" in done.stdout + done.stderr


def test_every_page_of_the_manual_is_on_the_site(site):
    for document in documents.MANUAL:
        name = document.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / (name.with_name("index.html") if name.stem == "README" else name)).is_file()


def test_no_page_loads_anything_from_another_host(site):
    pages = [*site.rglob("*.html")]
    loaded = {url for page in pages for url in resources(page.read_text())}
    assert any(url.endswith(".js") for url in loaded)
    assert any(url.endswith(".css") for url in loaded)
    assert {url for url in loaded if is_outside(url)} == set()
    assert {url for sheet in site.rglob("*.css") for url in outside_urls(sheet.read_text())} == set()


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://example.org/a.js"></script>',
        '<link rel="stylesheet" href="//example.org/a.css">',
        '<img src="http://example.org/a.png">',
        "<style>@import 'https://example.org/a.css';</style>",
        '<p style="background: url(https://example.org/a.png)">',
    ],
)
def test_a_resource_of_another_host_is_found(page):
    assert [url for url in resources(page) if is_outside(url)]


def test_links_out_of_the_manual_are_its_paths_on_the_site(site):
    page = (site / "running.html").read_text()
    assert "<code>deploy/nginx/nginx.conf</code> is a complete" in page
    assert 'href="../' not in page


@pytest.mark.parametrize("document", [*documents.ALL, ROOT / "CHANGES.md"], ids=lambda document: document.name)
def test_each_link_in_the_repository_leads_somewhere(document):
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)", text):
        file = (document.parent / target).resolve() if target else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def anchors(document: Path) -> set[str]:
    """Return the anchors that a code host gives to the headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_contents_list_every_page():
    contents = (ROOT / "docs" / "README.md").read_text()
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = [page for entry in navigation for page in entry.values()]
    names = [page if isinstance(page, str) else page[0] for page in pages]
    assert [f"({name})" in contents for name in names[1:]] == [True] * len(names[1:])


def test_the_index_lists_every_decision():
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    assert [file.name for file in folder.glob("[0-9]*.md") if f"({file.name})" not in index] == []


@pytest.mark.parametrize("document", documents.ALL, ids=lambda document: document.name)
def test_each_source_file_that_is_named_exists(document):
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for name in re.findall(r"`([\w/]+/\w+\.py)`", text):
        assert (ROOT / name).is_file() or (ROOT / "embedding_api" / name).is_file(), name


def pictures(document: Path) -> list[list[set[str]]]:
    """Return the rows of each picture of imports, each row as the set of its modules."""
    section = document.read_text().partition("\n## Imports\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```text\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [[set(re.split(" {4}", row)[0].split()) for row in block.splitlines() if "│" not in row] for block in blocks]


def test_the_pictures_of_imports_have_the_layers_of_the_contracts():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    assert pictures(ARCHITECTURE) == [
        [{name.removeprefix("embedding_api.") for name in row.split(" | ")} for row in rows] for rows in layers
    ]


def test_the_tree_has_the_files_and_folders_that_exist():
    section = ARCHITECTURE.read_text().partition("\n## The tree\n")[2]
    (tree,) = re.findall(r"^```text\n(.*?)^```$", section.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
    parents, shown = [ROOT], []
    for indentation, name in re.findall(r"^((?:  ){0,2})([\w./]+)", tree, re.MULTILINE):
        depth = len(indentation) // 2
        parents[depth + 1 :] = [parents[depth] / name]
        assert parents[-1].exists(), name
        shown.append(parents[-1])
    assert len(shown) == len(set(shown))
    package = ROOT / "embedding_api"
    for folder in (package, package / "engine"):
        missing = {path for path in folder.iterdir() if not path.name.startswith("__")} - set(shown)
        assert missing == set()
