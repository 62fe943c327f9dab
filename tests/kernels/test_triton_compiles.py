"""Every Triton kernel is compiled for a GPU, which needs none: as its operator launches it, for three dtypes.

float16's kernels are bfloat16's but for the conversions, and compiled for one of the two GPUs.

In a process of its own, since the kernels of this one may run in Triton's interpreter.
"""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from localmix import kernels

pytestmark = [
    pytest.mark.skipif(bool(kernels.triton.MISSING), reason=str(kernels.triton.MISSING)),
    pytest.mark.timeout(1800),  # all kernels are compiled before the first test
]

# the least that one block has, of all GPUs since 2020
SHARED_BYTES = 99 * 1024

TARGETS = [(90, "float32"), (90, "bfloat16"), (90, "float16"), (80, "float32"), (80, "bfloat16")]


def kinds_of(arguments, kernel):
    """Signature, constants and alignments of a launch, as Triton's own launcher finds them."""
    import torch

    names = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32"}
    signature, constants, alignments = {}, {}, {}
    for i, (parameter, value) in enumerate(zip(kernel.params, arguments, strict=True)):
        is_special = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or (is_special and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        if isinstance(value, float):
            signature[parameter.name] = "fp32"
            continue
        is_tensor = isinstance(value, torch.Tensor)
        signature[parameter.name] = names[value.dtype] if is_tensor else "i32" if abs(value) < 2**31 else "i64"
        if is_tensor or (is_special and value % 16 == 0):
            alignments[(i,)] = [["tt.divisibility", 16]]
    return signature, constants, alignments


def resources(cubin):
    """Registers and spilled bytes of a thread."""
    import triton

    file = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    file.write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(re.search(rf"\b{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL")}


def overwritten(ttgir):
    """Buffers in shared memory that a matrix unit may still read when what comes next is copied there.

    A product that is left pending in a loop reads one copy of a buffer while the other is written: there must be two.
    """
    if not re.search(r"warp_group_dot_wait .*pendings = [1-9]", ttgir):
        return []
    views = set(re.findall(r"(%[\w#]+) = ttg\.memdesc_index .*memdesc<1x", ttgir))
    views |= {new for new, old in re.findall(r"(%[\w#]+) = ttg\.memdesc_trans (%[\w#]+) ", ttgir) if old in views}
    factors = re.findall(r"ttng\.warp_group_dot (%[\w#]+), (%[\w#]+),", ttgir)
    return [view for pair in factors for view in pair if view in views]


def compile_all():
    """Prints one line of JSON per kernel, dtype and GPU; nothing runs."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget

    from localmix.kernels.triton import (  # noqa: F401
        local_weight,
        pairwise_weight,
        shared_weight,
        tuning,
        window_weight,
    )
    from localmix.kernels.triton.shared_weight_tiles import BY_PRODUCTS

    compiled_before = set()

    def compile(capability, kernel, programs, inputs, strides, constants, warps, stages=2, registers=None):
        signature, values, alignments = kinds_of((*inputs, *strides, *constants), kernel)
        launch = str((capability, kernel, signature, values, alignments, warps, stages, registers))
        if launch in compiled_before:
            return
        compiled_before.add(launch)
        source = triton.compiler.ASTSource(kernel, signature, values, alignments)
        options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
        options |= {} if registers is None else {"maxnreg": registers}
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        # bfloat16 may come in words of two numbers
        dtype = str(inputs[0].dtype).replace("int32", "bfloat16")
        found = {"kernel": kernel.__name__, "capability": capability, "dtype": dtype, "warps": warps}
        found |= {"pending": "pendings = 1" in compiled.asm["ttgir"], "overwritten": overwritten(compiled.asm["ttgir"])}
        print(json.dumps({**found, "shared": compiled.metadata.shared, **resources(compiled.asm["cubin"])}))

    def launch_all(x, groups, rank, kernel):
        shared, weight = x.new_empty(1, x.shape[3], *kernel), x.new_empty(*x.shape[:3], groups, kernel[0] * kernel[1])
        torch.ops.localmix.triton_shared_weight(x, shared, x.new_empty(x.shape[3]), (1, 1))
        torch.ops.localmix.triton_shared_weight_backward(x, x, shared, (1, 1), (False, True, True))
        torch.ops.localmix.triton_local_weight(x, weight, kernel, (1, 1))
        torch.ops.localmix.triton_local_weight_backward(x, x, weight, kernel, (1, 1), (False, True))
        launch_projected(x, groups, rank, kernel)

    def arguments_of_projected(x, groups, rank, kernel):
        hidden, lines = x.new_empty(*x.shape[:3], rank), groups * kernel[0] * kernel[1]
        return x, hidden, x.new_empty(lines, rank), x.new_empty(lines), groups, kernel, (1, 1)

    def launch_projected(x, groups, rank, kernel):
        """Forward and the gradients of what makes the weights."""
        projected = arguments_of_projected(x, groups, rank, kernel)
        torch.ops.localmix.triton_projected_local_weight(*projected)
        torch.ops.localmix.triton_projected_local_weight_backward(x, *projected, (False, True, True, True))

    def launch_applications(x, groups, rank, kernel):
        """Forward and the gradient of x, weights given and made."""
        weight = x.new_empty(*x.shape[:3], kernel[0] * kernel[1], groups).transpose(3, 4)
        projected = arguments_of_projected(x, groups, rank, kernel)
        torch.ops.localmix.triton_local_weight(x, weight, kernel, (1, 1))
        torch.ops.localmix.triton_projected_local_weight(*projected)
        torch.ops.localmix.triton_local_weight_backward(x, x, weight, kernel, (1, 1), (True, False))
        torch.ops.localmix.triton_projected_local_weight_backward(x, *projected, (True, False, False, False))

    def launch_shared(x, images, kernel, dilation):
        weight = x.new_empty(images, x.shape[3], *kernel)
        torch.ops.localmix.triton_shared_weight(x, weight, x.new_empty(x.shape[3]), dilation)
        torch.ops.localmix.triton_shared_weight_backward(x, x, weight, dilation, (True, True, True))

    def launch_weight_gradient(x, groups, kernel):
        weight = x.new_empty(*x.shape[:3], kernel[0] * kernel[1], groups).transpose(3, 4)
        torch.ops.localmix.triton_local_weight_backward(x, x, weight, kernel, (1, 1), (False, True))

    def launch_local_mlp(x, groups, size):
        weight, sizes = x.new_empty(groups, size**2, size**2), ((size, size), (size // 2, size // 2))
        torch.ops.localmix.triton_window_weight(x, weight, weight[:, 0], *sizes)
        torch.ops.localmix.triton_window_weight_backward(x, x, weight, *sizes, (True, True, True))

    def launch_attention(name, x, dim, size, step):
        query, key, value = x.new_empty(*x.shape[:3], 3, 2, dim).unbind(3)
        bias = (size**2, size**2) if name == "window_attention" else (2 * size - 1, 2 * size - 1)
        tensors, options = (query, key, value, x.new_empty(2, *bias)), (dim**-0.5, (size, size), (step, step))
        results = getattr(torch.ops.localmix, f"triton_{name}")(*tensors, *options)
        backward = getattr(torch.ops.localmix, f"triton_{name}_backward")
        backward(query, *tensors, *results, *options, (True, True, True, True))
        if name == "neighborhood_attention":  # the gradient of the queries is another kernel's without that of the bias
            backward(query, *tensors, *results, *options, (True, False, False, False))

    choose = tuning.choose

    def choose_all(name, problem, candidates, run, x):
        """The first tile, unmeasured; of the kernels for local weights, and by products, the first of each."""
        if name in ("local_weight", "projected_local_weight"):
            kinds = {min(tile[3], 0): tile for tile in reversed(candidates)}
            for tile in kinds.values():
                if tile != candidates[0]:
                    run(*tile)
        if name == "shared_weight":
            for tile in [tile for tile in candidates if tile[0] == BY_PRODUCTS][:1]:
                run(*tile)
        return choose(name, problem, candidates, run, x)

    tuning.choose = choose_all
    torch.use_deterministic_algorithms(True)
    for capability, name in TARGETS:
        dtype = getattr(torch, name)
        tuning.launch = functools.partial(compile, capability)
        tuning.is_hopper = lambda x, capability=capability: capability == 90
        # the kernel of the paper for one dtype and GPU, for the others one that compiles sooner
        size = 7 if (capability, name) == (90, "bfloat16") else 3
        x = torch.empty(2, 28, 28, 192, dtype=dtype)
        launch_all(x, 32, 48, (size, size))  # small groups
        launch_applications(x[..., :96], 32, 24, (size, size))
        launch_applications(x[..., :96], 32, 24 if dtype == torch.float32 else 256, (1, 65))  # too many for better ones
        launch_shared(x, 2, (11, 11), (1, 1))  # too many taps for registers
        # images enough for products; with less than five rows of a kernel a tile has more images, and other registers
        launch_shared(x.new_empty(18, 14, 14, 192), 1, (max(size, 5), max(size, 5)), (1, 1))
        if capability == 90 and dtype != torch.float16:  # which takes the registers that bfloat16 takes
            launch_applications(x[..., :99], 11, 8, (3, 3))
            launch_projected(x, 16, 48, (size, size))
            launch_applications(x, 8, 192, (5, 5))  # of many channels; other launches have the taps of 7 x 7
            launch_applications(x[..., :100], 20, 8, (3, 3))
            launch_local_mlp(x, 6, 7)  # groups that are copied to shared memory while products are under way
            launch_local_mlp(x, 6, 12)
            launch_weight_gradient(x, 64, (size, size))  # of three channels
            launch_weight_gradient(x, 3, (size, size))  # and of many, in blocks
        launch_local_mlp(x, 32, 7)
        launch_attention("window_attention", x, 32, 5 if dtype == torch.float32 else 7, 3)
        launch_attention("neighborhood_attention", x, 32, 7, 1)
    launch_attention("window_attention", x, 64, 12, 6)  # by tiles too
    tuning.launch, tuning.is_hopper = functools.partial(compile, 90), lambda x: True
    x = torch.empty(128, 7, 7, 768, dtype=torch.bfloat16)
    launch_shared(x, 1, (5, 5), (1, 1))  # maps of one tile
    launch_shared(x, 2, (5, 3), (1, 2))
    # Triton makes a constant of every number that is 1
    x = torch.empty(1, 1, 1, 1)
    launch_all(x, 1, 1, (1, 1))
    launch_local_mlp(x, 1, 1)
    launch_attention("window_attention", x, 1, 1, 0)
    launch_attention("window_attention", x, 1, 9, 0)
    launch_attention("neighborhood_attention", x, 1, 1, 1)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(Path(__file__))]
    lines = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_every_kernel_compiles_for_every_target(compiled):
    found = {(line["kernel"], line["capability"], line["dtype"].removeprefix("torch.")) for line in compiled}
    names = {
        "convolve",
        "shared_weight_gradient",
        "apply",
        "weight_gradient",
        "attend_in_windows",
        "gradients_in_windows",
        "attend",
        "query_gradient",
        "key_gradient",
        "bias_gradient",
        "apply_by_words",
        "mix_windows",
        "matrix_gradient",
        "convolve_in_registers",
        "shared_weight_gradient_in_registers",
        "lay_out_taps",
    }
    expected = {(name, *target) for name in names for target in TARGETS}
    for capability, dtype in TARGETS:
        expected.add(("sum_of_shares", capability, "float32"))
        if dtype != "float32":
            expected.add(("convolve_by_products", capability, dtype))
            made = ("apply_by_rows",) if capability == 80 else ("apply_by_strips", "apply_transposed_by_strips")
            expected |= {(name, capability, dtype) for name in made}
    assert found == expected


def test_no_kernel_spills_more_than_a_few_registers_or_wants_more_shared_memory_than_there_is(compiled):
    assert not [line for line in compiled if line["STACK"] > 160 or line["LOCAL"] or line["shared"] > SHARED_BYTES]


def test_no_product_reads_what_is_overwritten(compiled):
    assert any(line["pending"] for line in compiled)  # otherwise nothing was looked for
    assert not [line for line in compiled if line["overwritten"]]


if __name__ == "__main__":
    compile_all()
