"""ONNX files as users bring them: tensors of their own names, several of them, of other types."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx


class UserModel(NamedTuple):
    """What is in a file, and a request of two rows with the answer to it."""

    graph: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]

    def write(self, folder: Path) -> Path:
        """Write the file."""
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {self.graph}')
        onnx.checker.check_model(model)
        onnx.save(model, folder / "own.onnx")
        return folder / "own.onnx"


PICTURES = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)
TOKENS = np.array([[1, 2, 0], [3, 3, 3]])
USER_MODELS = {
    "cnn": UserModel(
        """cnn (float[n, 3, 4, 4] picture) => (float[n, 3, 1, 1] scores) {
               scores = GlobalAveragePool (picture) }""",
        {"picture": PICTURES},
        {"scores": PICTURES.mean((2, 3), keepdims=True)},
    ),
    "mlp": UserModel(
        """mlp (float[n, 2] features) => (int64[n] label, double[n, 2] hidden) {
               w = Constant <value = float[2, 2] {1, 0, 1, 1}> ()
               sums = MatMul (features, w)
               hidden = Cast <to = 11> (sums)
               label = ArgMax <axis = 1, keepdims = 0> (sums) }""",
        {"features": np.array([[1, 0], [0, 2]], np.float32)},
        {"label": np.array([0, 0]), "hidden": np.array([[1.0, 0.0], [2.0, 2.0]])},
    ),
    "text": UserModel(
        """text (int64[n, 3] ids, bool[n, 3] mask) => (float[n, unknown] words, bool[n, 3] left) {
               table = Constant <value = float[4] {0.5, 1.5, 2.5, 3.5}> ()
               found = Gather (table, ids)
               kept = Cast <to = 1> (mask)
               words = Mul (found, kept)
               left = Not (mask) }""",
        {"ids": TOKENS, "mask": TOKENS != 0},
        {"words": np.array([[1.5, 2.5, 0], [3.5] * 3], np.float32), "left": TOKENS == 0},
    ),
    "strings": UserModel(
        """strings (string[1, 2] said) => (string[1, 2] again) { again = Identity (said) }""",
        {"said": np.array([[b"yes", "\N{EURO SIGN}".encode()], [b"", b"x" * 4096]], object)},
        {"again": np.array([[b"yes", "\N{EURO SIGN}".encode()], [b"", b"x" * 4096]], object)},
    ),
}
