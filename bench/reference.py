"""Vectors of `SentenceTransformer.encode`, the reference for all contestants.

It is also a program, which `vectors` runs, so that the bench itself imports no torch: texts come from standard input as
JSON, and their vectors go to standard output as JSON.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.servers import ROOT


def vectors(folder: Path, texts: Sequence[str]) -> list[list[float]]:
    """Return the vectors of texts, by the model in a folder."""
    command = [sys.executable, "-m", "bench.reference", str(folder)]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(texts), stdout=subprocess.PIPE, text=True, check=True)
    return list(json.loads(done.stdout))


def main() -> None:
    """Write the vectors of the texts on standard input."""
    import transformers
    from sentence_transformers import SentenceTransformer

    # Other output must not mix with the vectors.
    output, sys.stdout = sys.stdout, sys.stderr
    transformers.utils.logging.disable_progress_bar()
    model = SentenceTransformer(sys.argv[1], device="cpu", local_files_only=True)
    found = [model.encode(text, normalize_embeddings=True, show_progress_bar=False) for text in json.load(sys.stdin)]
    json.dump([vector.tolist() for vector in found], output)


if __name__ == "__main__":
    main()
