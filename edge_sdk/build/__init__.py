"""From graphs to engines, on the machine that will run them: needs neither torch nor onnx."""
