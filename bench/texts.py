"""English texts to embed: docstrings of Python's standard library, cut to length. No text is used twice."""

import ast
import functools
import itertools
import sysconfig
from collections.abc import Sequence
from pathlib import Path

# Words of each kind. They make about 16, 145, and more than 256 tokens of a BERT vocabulary; 256 is MiniLM's window.
N_WORDS = {"short": 9, "passage": 88, "long": 220}

# The kinds in a mixed batch of 32, as in an index of documents and headings.
MIXED = ("short", "passage", "short", "passage", "short", "passage", "short", "long") * 4

_NOT_PROSE = {"idlelib", "lib2to3", "site-packages", "test", "tests"}


class Shelf:
    """Supplies each text once, in an order that is the same in every run with one version of Python.

    The library has about 250,000 words. After the last one, texts begin again, each time one word later, so that
    sentences return but texts do not.

    Args:
        words: Words to use instead of the library's.
    """

    def __init__(self, words: Sequence[str] | None = None) -> None:
        words = library_words() if words is None else words
        self._words = itertools.chain.from_iterable(itertools.islice(words, start, None) for start in range(len(words)))
        self._given: set[str] = set()

    def text(self, kind: str) -> str:
        """Return the next text of a kind in N_WORDS.

        Raises:
            RuntimeError: There are no words left.
        """
        while True:
            words = list(itertools.islice(self._words, N_WORDS[kind]))
            if len(words) < N_WORDS[kind]:
                raise RuntimeError("the standard library has no docstrings left; ask for fewer or shorter texts")
            text = " ".join(words)
            if text not in self._given:
                self._given.add(text)
                return text


@functools.cache
def library_words() -> list[str]:
    """Return the words of the library's docstrings, in their order."""
    library = Path(sysconfig.get_path("stdlib"))
    return [
        word
        for path in sorted(library.rglob("*.py"))
        if _NOT_PROSE.isdisjoint(path.relative_to(library).parts)
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for word in (ast.get_docstring(node) or "").split()
    ]
