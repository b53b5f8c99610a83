"""The documents that users read, and the code blocks in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MANUAL = sorted((ROOT / "docs").rglob("*.md"))
# Tests run the examples of these documents.
FOR_USERS = [README, *MANUAL]
ALL = [*FOR_USERS, ROOT / "CONTRIBUTING.md", ROOT / "bench" / "README.md"]


def text() -> str:
    """Return README and every page of the manual, one after the other."""
    return "\n".join(document.read_text() for document in FOR_USERS)


def page(name: str) -> str:
    """Return one page of the manual, such as `settings.md`."""
    return (ROOT / "docs" / name).read_text()


def blocks(language: str) -> list[str]:
    """Return the contents of every block of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text(), re.MULTILINE | re.DOTALL)


def curl_examples() -> list[tuple[str, str]]:
    """Return each curl command with the JSON that the document shows as its response."""
    return re.findall(r"^```bash\n(curl .*?)^```\n```json\n(.*?)^```$", text(), re.MULTILINE | re.DOTALL)
