"""The trainer: the process in which the student learns. It alone imports torch and onnx."""
