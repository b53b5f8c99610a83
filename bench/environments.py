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

# Runs in the peer's environment; writes the same weights as ONNX, and the tokenizer beside them.
_EXPORT = """
import sys
from optimum.onnxruntime import ORTModelForFeatureExtraction
from transformers import AutoTokenizer
ORTModelForFeatureExtraction.from_pretrained(sys.argv[1], export=True).save_pretrained(sys.argv[2])
AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
"""


class UnavailableError(RuntimeError):
    """A contestant cannot run here. The message says why."""


def infinity(engine: str) -> Path:
    """Return the folder of an environment with infinity and its engine; make it if necessary.

    Raises:
        UnavailableError: infinity cannot be installed.
    """
    requirements = ROOT / "bench" / f"requirements-infinity-{engine}.txt"
    folder = ENVIRONMENTS / f"infinity-{engine}"
    if not folder.exists():
        print(f"making {folder.relative_to(ROOT)} ...", flush=True)
    _run([str(ROOT / "scripts/environment.sh"), sys.executable, str(folder), str(requirements)])
    return folder


def onnx(environment: Path, model: Path, window: int) -> Path:
    """Return the folder of a model's weights as ONNX; make it if necessary.

    infinity's optimum engine truncates texts at the configuration's `max_position_embeddings`. This sets it to the
    window of sentence-transformers; otherwise the engine would read more and give other vectors.

    Raises:
        UnavailableError: The model cannot be exported.
    """
    folder = environment / "onnx" / model.parent.name
    if (folder / "model.onnx").exists():
        return folder
    print(f"exporting {folder.relative_to(ROOT)} ...", flush=True)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    _run([str(environment / "bin/python"), "-c", _EXPORT, str(model), str(part)])
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        _set(part / name, key, window)
    part.rename(folder)
    return folder


def _set(file: Path, key: str, value: int) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))


def _run(command: list[str]) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = None
    with contextlib.suppress(OSError):
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    if done is None or done.returncode:
        lines = done.stdout.strip().splitlines()[-3:] if done else ["the program cannot be run"]
        raise UnavailableError(f"{Path(command[0]).name} failed: {' | '.join(lines)}")
