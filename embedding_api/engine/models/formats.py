"""Files in a model's repository that this service does not read. Imports nothing, since the download imports it."""

# Weights for other libraries, by the end of the file's name.
OTHER_WEIGHTS = {
    ".onnx": "ONNX",
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".gguf": "GGUF",
    ".tflite": "TensorFlow Lite",
    ".mlmodel": "Core ML",
}

# The same for OpenVINO, whose suffixes other files have, too.
OPENVINO_WEIGHTS = {"openvino_model.xml": "OpenVINO", "openvino_model.bin": "OpenVINO"}

# Folders that hold weights for other libraries alone.
OTHER_FOLDERS = ("onnx", "openvino", "coreml")

# Files that are no part of a model.
NOT_OF_MODEL = (".md", ".png", ".jpg", ".lock", ".metadata")
