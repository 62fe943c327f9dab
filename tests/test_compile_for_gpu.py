"""What `tools/compile_for_gpu.py` compiles is what a GPU launches: Triton finds it. No GPU: nothing is launched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from localmix import kernels

TOOLS = Path(__file__).parents[1] / "tools"

pytestmark = [
    pytest.mark.skipif(bool(kernels.triton.MISSING), reason=str(kernels.triton.MISSING)),
    pytest.mark.timeout(600),
]

# one problem of the benchmark on tensors, as on a GPU that has just been found
LAUNCHES = f"""
import sys
sys.path.insert(0, {str(TOOLS)!r})
import compile_for_gpu
import torch, triton
from triton.compiler.compiler import CompiledKernel
from localmix.kernels.triton import compilation, tuning, window_weight

found = []

def load(kernel):
    kernel._run, kernel.function = lambda *_: None, None

triton.runtime.driver.set_active(compile_for_gpu.Driver(90))
CompiledKernel._init_handles = load
triton.knobs.compilation.listener = lambda *, cache_hit, **_: found.append(cache_hit)
tuning._milliseconds = lambda call: call() and 1.0
tuning._device_name = lambda x: "a GPU"
torch.cuda.is_current_stream_capturing = lambda: False
x, weight = torch.empty(128, 7, 7, 768, dtype=torch.bfloat16), torch.empty(24, 49, 49, dtype=torch.bfloat16)
sizes = ((7, 7), (0, 0))
torch.ops.localmix.triton_window_weight(x, weight, weight[:, 0].contiguous(), *sizes)
torch.ops.localmix.triton_window_weight_backward(x, x, weight, *sizes, (True, True, True))
print(found.count(True), found.count(False))
"""


def test_triton_finds_all_that_a_problem_launches(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    environment |= {"TRITON_STORE_BINARY_ONLY": "1", "LOCALMIX_CACHE": os.devnull}
    only = ("--parts", "operators", "--only", "local_mlp 7 x 7")
    command = [sys.executable, str(TOOLS / "compile_for_gpu.py"), *only]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.endswith(" launches\n")
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHES], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    hits, misses = map(int, done.stdout.split())
    assert hits >= 12 and misses == 0
    assert not list(tmp_path.rglob("*.ptx"))


def test_what_is_timed_in_float32_is_compiled_too():
    code = f"import sys; sys.path.insert(0, {str(TOOLS)!r}); import compile_for_gpu; print(dict(compile_for_gpu."
    calls = [f"{code}calls_of_{part}()).keys())" for part in ("operators", "tests")]
    of_operators, of_tests = (subprocess.check_output([sys.executable, "-c", call], text=True) for call in calls)
    for stage in ("56 x 56 x 96", "7 x 7 x 768"):
        assert f"'projected_inhomogeneous_convolution {stage} torch.float32'" in of_operators
        # what multiplies first and then applies its weights
        assert f"'inhomogeneous_convolution {stage} torch.float32'" in of_operators
    assert "'more than 2**31 numbers'" in of_tests
