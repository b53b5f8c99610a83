"""`.env.example` lists every setting, and a copy of it works."""

import dataclasses
import re
from pathlib import Path

import pytest

from embedding_api import settings as config
from embedding_api.settings import Settings, load_settings
from tests import documents

FIELDS = dataclasses.fields(Settings)
ROOT = Path(__file__).parents[2]


def test_the_example_file_is_the_one_that_the_code_generates():
    assert (ROOT / ".env.example").read_text() == config.env_example()


def test_an_unchanged_copy_of_the_example_file_changes_no_setting(monkeypatch, tmp_path):
    plain = load_settings()
    (tmp_path / ".env").write_text(config.env_example())
    assert load_settings() == plain


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_setting_is_in_the_example_and_can_be_uncommented(monkeypatch, tmp_path, field):
    key = field.name.upper()
    lines = [line[2:] for line in config.env_example().splitlines() if line.startswith(f"# {key}=")]
    assert len(lines) == 1
    more = 'SUPPORTED_MODELS="your-organisation/your-model"\n' if key == "TRUST_REMOTE_CODE" else ""
    # The service refuses placeholders of secrets.
    (tmp_path / ".env").write_text(more + lines[0].replace("your_", "my_") + "\n")
    load_settings()


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_setting_is_in_the_manual_with_its_default(field):
    default = field.metadata["default"]
    cells = f"| `{field.name.upper()}` | " + (f"`{default}` | " if default else "")
    assert documents.page("settings.md").count(cells) == 1


def test_the_manual_has_no_setting_that_does_not_exist():
    shown = re.findall(r"^\| `(\w+)` \|", documents.page("settings.md"), re.MULTILINE)
    assert shown == [field.name.upper() for field in FIELDS]
