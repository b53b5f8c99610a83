"""Counts the code lines of `embedding_api`, without docstrings, comments and blank lines."""

import ast
import io
import sys
import tokenize
from pathlib import Path

_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def n_code_lines(source: str) -> int:
    """Return the number of lines that hold code."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {line for token in tokens if token.type not in _NO_CODE for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def main(root: Path) -> None:
    """Print the code lines of each file, most first, and their sum."""
    counts = {path: n_code_lines(path.read_text()) for path in root.rglob("*.py")}
    for path, count in sorted(counts.items(), key=lambda item: -item[1]):
        print(f"{count:6} {path.relative_to(root.parent)}")
    print(f"{sum(counts.values()):6} in {len(counts)} files")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "embedding_api")
