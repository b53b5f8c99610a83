"""Convert a sentence-transformers model for the OpenVINO backend. Run as a program, in a process of its own.

Its argument holds those of `main` as JSON; the last line of its output is what `main` returns, as JSON. The libraries
that it needs start threads, which a master that forks must not have. It needs no network, no key and no token.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from embedding_api.engine.backends import Loaded, UnfitError
from embedding_api.engine.findings import UnservableError, in_a_line
from embedding_api.machine import analytics
from embedding_api.telemetry import library_warnings


def main(
    source: str, target: str, *, quantise: bool, calibration_texts: str, trust_remote_code: bool, allow_pickle: bool
) -> dict[str, Any]:
    """Convert a model.

    Args:
        source: The folder of the model.
        target: An empty folder for the result.
        quantise: True to make an int8 model, which needs nncf.
        calibration_texts: A file with one text a line; empty where `quantise` is false.
        trust_remote_code: True if Python files that come with the model may run.
        allow_pickle: True if weights may come from pickle files.

    Returns:
        `warnings`, the warnings of libraries, one line each. After a failure also `unservable`, why no backend can
        serve the model, or `refusal`, why the model cannot be converted, or `problem`, any other failure, of which a
        conversion has the system's number in `errno`. After the first two another conversion would end the same way.
    """
    analytics.block()
    # Imported here: after analytics are blocked, and before warnings are collected.
    from embedding_api.engine.backends import export, torch_model  # noqa: F401 - `export` imports openvino

    loaded = None
    failure: dict[str, Any] = {}
    with library_warnings.collected() as warnings:
        try:
            loaded = torch_model.load(
                Path(source),
                device="cpu",
                precision="float32",
                trust_remote_code=trust_remote_code,
                allow_pickle=allow_pickle,
            )
            _write(loaded, Path(target), Path(calibration_texts) if quantise else None)
        except UnservableError as error:
            failure = {"unservable": str(error)}
        except UnfitError as error:
            failure = {"refusal": str(error)}
        except Exception as error:  # noqa: BLE001 - the operator gets any failure of the program in one line
            stage = "it cannot be loaded" if loaded is None else "its conversion failed"
            failure = {"problem": f"{stage} ({in_a_line(error)})", "errno": loaded and getattr(error, "errno", None)}
    return {"warnings": warnings, **failure}


def _write(loaded: Loaded, target: Path, calibration_texts: Path | None) -> None:
    """Export a model, quantise it if there are texts for the calibration, and write all that is read later."""
    from embedding_api.engine.backends import export, openvino_backend

    route = loaded.routes[None]
    model, layout = export.exported(loaded.routes)
    if calibration_texts is not None:
        texts = [line for line in calibration_texts.read_text(encoding="utf-8").splitlines() if line.strip()]
        readings = route.reader.read(texts, route.prompt).tokens
        model = export.quantised(model, [list(layout([tokens.ids])) for tokens in readings])
    export.save(model, target / openvino_backend.MODEL)
    route.reader.save(target)
    np.save(target / openvino_backend.REFERENCE, np.stack([each.reference for each in loaded.routes.values()]))
    description = {
        "dim": route.backend.dim,
        "prompts": {name: prompt.text for name, prompt in route.prompts.items()},
        "routes": [(task, each.prompt.text) for task, each in loaded.routes.items()],
        "layout": {"name": type(layout).__name__, **layout._asdict()},
        "findings": loaded.findings,
    }
    (target / openvino_backend.DESCRIPTION).write_text(json.dumps(description))


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))  # noqa: T201 - the output of the program
