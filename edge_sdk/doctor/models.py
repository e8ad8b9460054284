"""Whole ONNX models of one layer, kept as text because devices have no onnx package to make them with.

Each is as the onnx package serialised it (opset 13, IR 7); the doctor's tests make them again and compare.
"""

from __future__ import annotations

import base64

# y = Add(x, x), float32 of shape (2,).
ADD = "CAc6NQoOCgF4CgF4EgF5IgNBZGQSAWdaDwoBeBIKCggIARIECgIIAmIPCgF5EgoKCAgBEgQKAggCQgQKABAN"

# x (1, 8, 4, 4) float32 -> Q -> DQ -> Conv 1x1 -> y float32; scale 1, weights int8 -32 to 31 in order times 0.5.
INT8_CONV = (
    "CAc63wIKHAoBeAoBcwoBehIBcSIOUXVhbnRpemVMaW5lYXIKHgoBcQoBcwoBehIBZCIQRGVxdWFudGl6ZUxpbmVhcgorCgF3CgF0CgF1EgF2IhBE"
    "ZXF1YW50aXplTGluZWFyKgsKBGF4aXMYAKABAgoPCgFkCgF2EgF5IgRDb252EgFnKgsQAUIBc0oEAACAPyoIEANCAXpKAQAqTwgICAgIAQgBEANC"
    "AXdKQODh4uPk5ebn6Onq6+zt7u/w8fLz9PX29/j5+vv8/f7/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8qKQgIEAFCAXRKIAAAAD8A"
    "AAA/AAAAPwAAAD8AAAA/AAAAPwAAAD8AAAA/KhEICBADQgF1SggAAAAAAAAAAFobCgF4EhYKFAgBEhAKAggBCgIICAoCCAQKAggEYhsKAXkSFgoU"
    "CAESEAoCCAEKAggICgIIBAoCCARCBAoAEA0="
)

# x (1, 8, 4, 4) uint8 -> QLinearConv 1x1, every weight int8 127 -> y uint8; y = 200 * x / 255 where no sum saturates.
QLINEAR_CONV = (
    "CAc65gEKKAoBeAoBcwoBegoBdwoBcwoBdQoBdAoBehIBeSILUUxpbmVhckNvbnYSAWcqCxABQgFzSgQAAIA/KggQAkIBekoBACoIEANCAXVKAQAq"
    "TwgICAgIAQgBEANCAXdKQH9/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f38qCxAB"
    "QgF0SgTN7KFEWhsKAXgSFgoUCAISEAoCCAEKAggICgIIBAoCCARiGwoBeRIWChQIAhIQCgIIAQoCCAgKAggECgIIBEIECgAQDQ=="
)
CONV_SHAPE = (1, 8, 4, 4)


def model(text: str) -> bytes:
    """The ONNX file that one of these constants holds."""
    return base64.b64decode(text)
