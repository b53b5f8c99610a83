"""Find the commands that documents and comments show, so that a test can run each of them."""

import re
from pathlib import Path

from tests import documents
from tests.documents import ROOT

COMMENTED = [
    *(ROOT / name for name in ("Dockerfile", "Makefile", "k6_test.js", "mkdocs.yml")),
    *(ROOT / name for name in ("requirements.txt", "requirements-dev.txt")),
    *(file for name in ("deploy", "scripts") for file in (ROOT / name).rglob("*.*") if file.suffix != ".json"),
]
# Languages of blocks that hold no commands. A block without a language holds commands.
OTHER_LANGUAGES = {"dotenv", "ini", "json", "python", "text"}
# A span of code in a sentence is a command if it begins with one of these programs, or with a program of a block.
PROGRAMS = {
    "apt-get", "cp", "curl", "docker", "git", "gunicorn", "k6", "kill", "make", "nginx", "pip", "promtool", "pytest",
    "python", "python3", "sudo", "systemctl",
}  # fmt: skip


def shown() -> dict[str, str]:
    """Return each command with the file that shows it; `a && b` is two commands."""
    blocks, spans = {}, {}
    for file in documents.ALL:
        _collect(file.read_text(), re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL), file, blocks, spans)
    for file in COMMENTED:
        comments = re.findall(r"^ *(?:#|//)(?!!)( .*|)$", file.read_text(), re.MULTILINE)
        _collect("\n".join(comments), re.compile(r"()((?:^ {3,}.*\n?)+)", re.MULTILINE), file, blocks, spans)
    programs = PROGRAMS | {program(command) for command in blocks}
    sentences = {span: place for span, place in spans.items() if program(span) in programs or "/bin/" in program(span)}
    return blocks | sentences


def program(command: str) -> str:
    """Return the program that a command calls, without the variables before it."""
    words = [word for word in command.split() if not re.match(r"\w+=", word)]
    return words[0] if words else ""


def _collect(text: str, block: re.Pattern[str], file: Path, blocks: dict[str, str], spans: dict[str, str]) -> None:
    place = str(file.relative_to(ROOT))
    for language, content in block.findall(text):
        if language not in OTHER_LANGUAGES:
            blocks.update(dict.fromkeys(_commands(content), place))
    for span in re.findall(r"`([^`]+)`", block.sub("", text)):
        spans[" ".join(span.split())] = place


def _commands(block: str) -> list[str]:
    """Return the commands of a block, each in one line, without comments."""
    # tests/server/test_documents.py runs the curl examples, whose quotes contain line feeds.
    for command, _ in documents.curl_examples():
        block = block.replace(command, "")
    lines = re.sub(r"\\\n *", "", block).splitlines()
    return [part.strip() for line in lines for part in re.sub(r"(^| )#.*", "", line).split(" && ") if part.strip()]
