"""Triton's Python backend: the model of the corpus, the sum and the largest of each row."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """What Triton calls."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request of a batch."""
        return [self._answer(each) for each in requests]

    def _answer(self, request: Any) -> Any:
        rows = pb_utils.get_input_tensor_by_name(request, "input").as_numpy()
        answers = np.stack([rows.sum(axis=1), rows.max(axis=1)], axis=1).astype(np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("output", answers)])
