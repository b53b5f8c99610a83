"""Virtual environments for peers whose requirements differ from ours, and the files that they need, each made once."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.servers import ROOT

ENVIRONMENTS = ROOT / "bench" / ".environments"

# Runs in the environment of ONNX Runtime; writes the same weights as ONNX, and the tokenizer beside them.
_EXPORT = """
import sys
from optimum.onnxruntime import ORTModelForFeatureExtraction
from transformers import AutoTokenizer
ORTModelForFeatureExtraction.from_pretrained(sys.argv[1], export=True).save_pretrained(sys.argv[2])
AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
"""


class UnavailableError(RuntimeError):
    """A contestant cannot run here. The message says why."""


def environment(name: str) -> Path:
    """Return the folder of the environment with the packages of `requirements-NAME.txt`; make it if necessary.

    Raises:
        UnavailableError: The packages cannot be installed.
    """
    folder = ENVIRONMENTS / name
    if not folder.exists():
        print(f"making {folder.relative_to(ROOT)} ...", flush=True)
    requirements = ROOT / "bench" / f"requirements-{name}.txt"
    _run([str(ROOT / "scripts/environment.sh"), sys.executable, str(folder), str(requirements)])
    return folder


def onnx(python: Path, model: Path, window: int) -> Path:
    """Return the folder of a model's weights as ONNX; make it if necessary.

    text-embeddings-inference truncates texts at the configuration's `max_position_embeddings`. This sets it to the
    window of sentence-transformers; otherwise that server would read more and give other vectors.

    Args:
        python: Python of an environment with optimum-onnx.
        model: Folder of the model.
        window: The model's window in tokens.

    Raises:
        UnavailableError: The model cannot be exported.
    """
    folder = ENVIRONMENTS / "onnx" / model.parent.name
    if (folder / "model.onnx").exists():
        return folder
    print(f"exporting {folder.relative_to(ROOT)} ...", flush=True)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    _run([str(python), "-c", _EXPORT, str(model), str(part)])
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        _set(part / name, key, window)
    part.rename(folder)
    return folder


def gguf(model: Path, type_name: str) -> Path:
    """Return the file of a model's weights for llama.cpp, in a type of `gguf_model.TYPES`; make it if necessary.

    Raises:
        UnavailableError: The model cannot be written so.
    """
    file = ENVIRONMENTS / "gguf" / f"{model.parent.name}-{type_name}.gguf"
    if not file.exists():
        print(f"writing {file.relative_to(ROOT)} ...", flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        _run([sys.executable, "-m", "bench.gguf_model", str(model), str(part), type_name])
        part.rename(file)
    return file


def program(name: str) -> str:
    """Return the path of a program on the PATH.

    Raises:
        UnavailableError: It is not there.
    """
    found = shutil.which(name)
    if found is None:
        raise UnavailableError(f"{name} is not on the PATH")
    return found


def _set(file: Path, key: str, value: int) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))


def _run(command: list[str]) -> None:
    variables = os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = None
    with contextlib.suppress(OSError):
        done = subprocess.run(
            command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    if done is None or done.returncode:
        lines = done.stdout.strip().splitlines()[-3:] if done else ["the program cannot be run"]
        raise UnavailableError(f"{Path(command[0]).name} failed: {' | '.join(lines)}")
