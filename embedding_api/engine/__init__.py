"""The engine room: texts in, vectors out. It knows nothing of Flask. torch and openvino stay in `backends/`."""
