"""Keep libraries from reporting to an analytics host."""

import sys


def block() -> None:
    """Make `openvino_telemetry` impossible to import. Call it before anything imports openvino or nncf.

    openvino, its converter and nncf report each use of themselves, from a thread, if they find that package.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # how Python spells "cannot be imported"
