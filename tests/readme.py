"""The README's code blocks, so that tests can hold it to its word."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The contents of every block of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def curl_examples() -> list[tuple[str, str]]:
    """Each curl command with the JSON that the README gives as its answer."""
    return re.findall(r"^```bash\n(curl .*?)^```\n```json\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
