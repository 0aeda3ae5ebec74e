"""A training step on another device, without a GPU: see pretend_gpu.py.

Catches what runs on a CPU and fails in the first step on a GPU, or goes wrong in a replayed one: a tensor that is left on
the CPU, a generator or an index of the other device, a state that does not come back to where it was.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pretend_gpu import FEW, MAKE_DEVICE
from torch.utils import backend_registration

pytestmark = pytest.mark.skipif(not hasattr(backend_registration, MAKE_DEVICE), reason="needs a newer PyTorch")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """For each name the error, or how far the two devices are apart, as a share of what the steps have moved."""
    work = tmp_path_factory.mktemp("pretended")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    command = [sys.executable, str(HERE / "pretend_gpu.py"), str(work)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads((work / "found.json").read_text()) | {"printed": result.stdout}


@pytest.mark.parametrize("name", [*FEW, "train_llm.py"])
def test_another_device_takes_the_same_steps(found, name):
    """Two steps, or a script that is resumed; a GPU sums in another order."""
    assert "error" not in found[name], found[name]["error"]
    assert found[name]["same rollouts"] and found[name]["difference"] < 1e-3


def test_the_pretended_gpu_is_strict(found):
    """The tests above could not fail if it were not."""
    assert "tensors on two devices, [(2,)] on the CPU" in found["two devices"]["error"]


def test_the_tests_for_a_gpu_pass_there(found):
    """Some that need no CUDA. Catches: a test that fails by itself when at last somebody runs it on a GPU."""
    assert found["tests/gpu"] == 0 and "6 passed" in found["printed"], found["printed"]
