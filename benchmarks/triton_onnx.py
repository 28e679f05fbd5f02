"""An ONNX file in Triton's Python backend, without this project, opened as our replicas do."""

import json
import os
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the file that the configuration names, on its CPU."""
        config = json.loads(args["model_config"])
        said = {key: each["string_value"] for key, each in config["parameters"].items()}
        os.sched_setaffinity(0, {int(said["cpu"])})
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(said["path"], options, providers=providers)
        (self._name,) = (each.name for each in self._session.get_inputs())

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests of a batch in one run."""
        rows = [pb_utils.get_input_tensor_by_name(one, self._input).as_numpy() for one in requests]
        batch = rows[0] if len(rows) == 1 else np.concatenate(rows)
        answers = self._session.run(None, {self._name: batch})[0]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(self._output, part)])
            for part in np.split(answers, np.cumsum([len(each) for each in rows])[:-1])
        ]
