"""ONNX Runtime alone, in-process: what text-embeddings-inference and others compute with on a CPU.

`field.py` runs this file in an environment of its own: `python onnx_runtime.py FOLDER WINDOW`. It writes a line of JSON
for each line that it reads: `{"texts": [...]}` gives the seconds that each text takes, one after another, with
tokenizing and without pooling; with `"vectors": true` it gives their vectors. ONNX Runtime has its default options,
with which it uses all cores.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


def computation(folder: Path, window: int) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
    """Return the function from a text to its token vectors (1, n_tokens, dim) and its attention mask (1, n_tokens)."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(window)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = {each.name for each in session.get_inputs()}

    def compute(text: str) -> tuple[np.ndarray, np.ndarray]:
        encoding = tokenizer.encode(text)
        inputs = {
            "input_ids": np.array([encoding.ids], dtype=np.int64),
            "attention_mask": np.array([encoding.attention_mask], dtype=np.int64),
            "token_type_ids": np.array([encoding.type_ids], dtype=np.int64),
        }
        (hidden, *_) = session.run(None, {name: value for name, value in inputs.items() if name in names})
        return hidden, inputs["attention_mask"]

    return compute


def mean(hidden: np.ndarray, mask: np.ndarray) -> list[float]:
    """Return the mean of the token vectors, of length 1. Shapes are those of `computation`."""
    pooled = (hidden[0] * mask[0][:, None]).sum(axis=0)
    return (pooled / np.linalg.norm(pooled)).tolist()


def main() -> None:
    """Load the model, and serve until standard input ends."""
    results, sys.stdout = sys.stdout, sys.stderr
    compute = computation(Path(sys.argv[1]), int(sys.argv[2]))
    compute("ready")
    print(json.dumps({"version": onnxruntime.__version__}), file=results, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        if task.get("vectors"):
            found = [mean(*compute(text)) for text in task["texts"]]
        else:
            found = []
            for text in task["texts"]:
                started = time.perf_counter()
                compute(text)
                found.append(time.perf_counter() - started)
        print(json.dumps(found), file=results, flush=True)


if __name__ == "__main__":
    main()
