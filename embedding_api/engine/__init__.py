"""The engine room: texts in, vectors out. Knows nothing of Flask; torch and openvino stay in `backends/`."""

import sys

# `import openvino`, its converter and nncf each report themselves to an analytics host, from a thread, unless they find
# no openvino_telemetry. Here, since whatever imports them in this package has imported this first.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # how Python spells "cannot be imported"
