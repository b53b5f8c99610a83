"""Convert a sentence-transformers model for the OpenVINO backend. Run as a program, in a process of its own.

Its argument is a `Conversion` as JSON; the last line of its output is an `Outcome` as JSON. The libraries that it needs
start threads, which a master that forks must not have. It needs no network, no key and no token.
"""

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedding_api.engine.backends import Loaded, UnfitError
from embedding_api.engine.backends.layout import Packing, Padding
from embedding_api.engine.findings import UnservableError, in_a_line
from embedding_api.machine import analytics
from embedding_api.telemetry import library_warnings

if TYPE_CHECKING:
    import openvino

# The texts of the calibration where CALIBRATION_TEXTS names no file.
_CALIBRATION_TEXTS = Path(__file__).with_name("calibration.txt")


@dataclass(frozen=True)
class Conversion:
    """What to convert.

    Attributes:
        source: The folder of the model.
        target: An empty folder for the result.
        quantise: True to make an int8 model, which needs nncf.
        calibration_texts: A file with one text a line; empty for the file of this package.
        trust_remote_code: True if Python files that come with the model may run.
        allow_pickle: True if weights may come from pickle files.
    """

    source: str
    target: str
    quantise: bool
    calibration_texts: str
    trust_remote_code: bool
    allow_pickle: bool


@dataclass(frozen=True)
class Outcome:
    """The end of a conversion. It succeeded if the first three texts are empty.

    Attributes:
        unservable: Why no backend can serve the model. Another conversion would end the same way.
        refusal: Why the model cannot be converted. Another conversion would end the same way.
        problem: Any other failure.
        errno: The system's number of that failure, or 0.
        warnings: The warnings of libraries, one line each.
    """

    unservable: str = ""
    refusal: str = ""
    problem: str = ""
    errno: int = 0
    warnings: tuple[str, ...] = ()


def main(conversion: Conversion) -> Outcome:
    """Convert a model."""
    analytics.block()
    # Imported here: after analytics are blocked, and before warnings are collected.
    from embedding_api.engine.backends import export, torch_model

    loaded = None
    with library_warnings.collected() as warnings:
        try:
            loaded = torch_model.load(
                Path(conversion.source),
                device="cpu",
                precision="float32",
                n_threads=1,
                trust_remote_code=conversion.trust_remote_code,
                allow_pickle=conversion.allow_pickle,
            )
            _write(loaded, *export.exported(loaded.routes), conversion)
            outcome = Outcome()
        except UnservableError as error:
            outcome = Outcome(unservable=str(error))
        except UnfitError as error:
            outcome = Outcome(refusal=str(error))
        except Exception as error:  # noqa: BLE001 - the operator gets any failure of the program in one line
            if loaded is None:
                outcome = Outcome(problem=f"it cannot be loaded ({in_a_line(error)})")
            else:
                number = getattr(error, "errno", None) or 0
                outcome = Outcome(problem=f"its conversion failed ({in_a_line(error)})", errno=number)
    return replace(outcome, warnings=tuple(warnings))


def _write(loaded: Loaded, model: "openvino.Model", layout: Packing | Padding, conversion: Conversion) -> None:
    """Quantise an exported model if asked to, and write all that the OpenVINO backend reads."""
    from embedding_api.engine.backends import export, openvino_backend

    route, target = loaded.routes[None], Path(conversion.target)
    if conversion.quantise:
        file = Path(conversion.calibration_texts) if conversion.calibration_texts else _CALIBRATION_TEXTS
        texts = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
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
    print(json.dumps(asdict(main(Conversion(**json.loads(sys.argv[1]))))))  # noqa: T201 - the output of the program
