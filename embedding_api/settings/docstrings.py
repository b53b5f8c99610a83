"""Docstrings below the attributes of a class, which Python itself does not keep. Imports the standard library alone."""

import ast
import inspect
import itertools


def docstrings_of(described: type) -> dict[str, str]:
    """Return the docstring below each attribute of a class, by the attribute's name."""
    docs = {}
    for statements in itertools.pairwise(ast.walk(ast.parse(inspect.getsource(described)))):
        match statements:
            case ast.Assign([ast.Name(name)]) | ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(doc))):
                docs[name] = inspect.cleandoc(doc)
    return docs
