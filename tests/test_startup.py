"""What `mdcs train` on digits does not import, so that a short run is short."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mdcs.data import arrays

NOT_NEEDED = ["IPython", "onnx", "onnxruntime", "optuna", "pandas", "plotly", "pyarrow", "safetensors"]
NOT_NEEDED += ["sklearn", "tensorboard", "timm", "wandb"]

PROGRAM = """
import sys
import mdcs
mdcs.run(["trainer.max_epochs=1", "hydra.run.dir=" + sys.argv[1]])
print("loaded", *sorted(sys.modules))
"""


@pytest.mark.slow
def test_training_on_digits_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path / "run")]
    last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()
    assert last[0] == "loaded" and "mdcs.train" in last
    assert not set(NOT_NEEDED) & set(last)


@pytest.mark.parametrize("there", [True, False])
def test_digits_are_those_of_scikit_learn(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its file, and from its function where a version keeps the file elsewhere."""
    from sklearn.datasets import load_digits

    if not there:
        monkeypatch.setattr(arrays, "find_spec", lambda name: None)
    read, expected = arrays._digits(), load_digits()
    np.testing.assert_array_equal(read[:, :64].reshape(-1, 8, 8), expected.images)
    np.testing.assert_array_equal(read[:, 64], expected.target)
