"""English texts to embed, from docstrings of Python's library and of installed packages. No text is used twice."""

import ast
import functools
import importlib.util
import itertools
import re
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# Words of each kind besides short texts. They make about 145, more than 256, and more than 512 tokens of a BERT
# vocabulary; 256 is MiniLM's window.
N_WORDS = {"passage": 88, "long": 220, "document": 600}

# Characters of a short text, which is a sentence. It has 8 to 30 tokens.
SHORTEST, LONGEST = 25, 90

# The kinds in a mixed batch of 32, as in an index of documents and headings.
MIXED = ("short", "passage", "short", "passage", "short", "passage", "short", "long") * 4

# Packages whose docstrings give further sentences. The service's own requirements bring all of them.
PACKAGES = ("numpy", "scipy", "sklearn", "networkx")

_NOT_PROSE = {"idlelib", "lib2to3", "site-packages", "test", "tests"}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_SENTENCE = re.compile(r"[A-Z][a-z']* .*[a-z)]\.")
_CODE = re.compile(r">>>|::|--|==|[|_\\{}<>]")


class Shelf:
    """Supplies each text once, in an order that is the same in every run with the same Python and packages.

    A short text is a sentence. After the last sentence, short texts begin again: the first half of each is from one
    sentence, and the second half from another. Other texts are successive words of the library, about 250,000. After
    the last word, they begin again, each time one word later.

    Args:
        words: Words to use instead of the library's, for all kinds but short texts.
        cut: Cuts a text to the tokens that a model reads; for texts of the kind `window`.
    """

    def __init__(self, words: Sequence[str] | None = None, *, cut: Callable[[str], str] | None = None) -> None:
        words = library_words() if words is None else words
        self._words = itertools.chain.from_iterable(itertools.islice(words, start, None) for start in range(len(words)))
        self._short = short_texts()
        self._cut = cut
        self._given: set[str] = set()

    def text(self, kind: str) -> str:
        """Return the next text of a kind: `short`, `window`, or one of N_WORDS.

        Raises:
            RuntimeError: There are no words left.
        """
        if kind == "window":
            assert self._cut is not None, "the shelf was not told where the window ends"
            return self._cut(self.text("document"))
        while True:
            text = next(self._short) if kind == "short" else self._next_words(N_WORDS[kind])
            if text not in self._given:
                self._given.add(text)
                return text

    def _next_words(self, n_words: int) -> str:
        words = list(itertools.islice(self._words, n_words))
        if len(words) < n_words:
            raise RuntimeError("the standard library has no docstrings left; ask for fewer or shorter texts")
        return " ".join(words)


def short_texts() -> Iterator[str]:
    """Yield all sentences, and then halves of two sentences, without an end in practice."""
    sentences: list[str] = []
    for package in ("", *PACKAGES):
        found = _sentences(package)
        yield from found
        sentences += found
    halves = [(words[: len(words) // 2], words[len(words) // 2 :]) for words in map(str.split, sentences)]
    for distance in range(1, len(halves)):
        for (first, _), (_, second) in zip(halves, halves[distance:] + halves[:distance], strict=True):
            text = " ".join(first + second)
            if SHORTEST <= len(text) <= LONGEST:
                yield text


def sentences_of(docstring: str) -> list[str]:
    """Return the sentences of a docstring that are short texts: prose of SHORTEST to LONGEST characters."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", docstring))
    return [
        sentence
        for paragraph in paragraphs
        for sentence in _SENTENCE_END.split(paragraph)
        if SHORTEST <= len(sentence) <= LONGEST and _SENTENCE.fullmatch(sentence) and not _CODE.search(sentence)
    ]


@functools.cache
def docstrings(package: str = "") -> tuple[str, ...]:
    """Return every docstring of a package, without its tests; of Python's own library by default."""
    if package:
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            return ()
        folder = Path(found.origin).parent
    else:
        folder = Path(sysconfig.get_path("stdlib"))
    return tuple(
        docstring
        for path in sorted(folder.rglob("*.py"))
        if _NOT_PROSE.isdisjoint(path.relative_to(folder).parts)
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if (docstring := ast.get_docstring(node))
    )


@functools.cache
def _sentences(package: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(sentence for each in docstrings(package) for sentence in sentences_of(each)))


@functools.cache
def library_words() -> list[str]:
    """Return the words of all docstrings of the library, in their order."""
    return [word for docstring in docstrings() for word in docstring.split()]
