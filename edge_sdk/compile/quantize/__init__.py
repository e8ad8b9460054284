"""The pair's graphs in INT8 and float16: precision lives in the graph, on every backend.

ONNX Runtime's quantiser and float16 converter do the work. NVIDIA ModelOpt would too, but pins onnx and
onnxruntime-gpu to releases that shut out everything else here, and writes symmetric INT8 alone, which ONNX Runtime's
CPU kernels run without fusing the activations. What is added here is what neither does: one range for both ends of a
state tensor, state kept in the graph's own type and layout, Q/DQ on the skip input of residual additions alone, and
the frame's bytes as they come.
"""
