import json
import re
import signal

import pytest
import torch

from localmix import kernels
from localmix.cli import main
from localmix.kernels import aten, native
from localmix.reports.benchmarks import contenders, limits, models, operators, peers_attention, report, rows
from localmix.reports.benchmarks.gate import Call, refusal
from localmix.reports.benchmarks.limits import Limits, Work
from localmix.reports.benchmarks.operators import bench_operators
from localmix.reports.benchmarks.peers import PEERS, peers
from localmix.reports.benchmarks.problems import DIRECTIONS, KERNEL, NAMES, SHIFTED, STAGES, cases, problem

SMALL = {"shape": (8, 9, 32), "batch_size": 2, "device": "cpu", "rounds": 3, "seconds": 0.0}
EAGER = ["native", "aten", *(name for group in PEERS.values() for name in group if not name.endswith("compiled"))]


@pytest.fixture(autouse=True, scope="module")
def quickly_measured():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "COPY_BYTES", {"cpu": 2**16})
        patch.setattr(limits, "MATRIX_SIZE", {"cpu": 32})
        yield


def strict(text):
    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def benched(quickly_measured, tmp_path_factory):
    output = tmp_path_factory.mktemp("bench")
    return output, bench_operators(impls=EAGER, output=output, **SMALL)


def small(name, size=(9, 11), channels=64, **options):
    return problem(name, (*size, channels), batch=3, **options)


def test_every_operator_is_benchmarked():
    assert set(NAMES) - {SHIFTED} == set(kernels.OPERATORS) == set(PEERS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_contender_passes_the_gate(name, direction):
    this = small(name, (14, 7))
    for contender in (*contenders.own(this), *peers(this)):
        if not contender.missing and not contender.name.endswith("compiled"):
            assert refusal(Call(contender, this), direction) is None, contender.name


@pytest.mark.parametrize(
    ("name", "peer"), [("window_attention", "partition-sdpa"), ("neighborhood_attention", "gather")]
)
def test_attention_without_bias_passes_the_gate(name, peer):
    this = small(name, (14, 7), bias=False)
    assert "bias" not in this.tensors
    calls = [
        Call(c, this) for c in (*contenders.own(this), *peers(this)) if c.name in ("aten", *EAGER) and not c.missing
    ]
    built = set() if native.MISSING else {"native"}
    assert {call.contender.name for call in calls} == {"aten", peer} | built
    assert not any(refusal(call, "forward") for call in calls)


@pytest.mark.filterwarnings("ignore:.*without torch.compile")
@pytest.mark.parametrize("name", ["window_attention", SHIFTED, "neighborhood_attention"])
@pytest.mark.parametrize("bias", [True, False])
def test_rules_of_flex_attention_are_those_of_the_operators(monkeypatch, name, bias):
    """What runs compiled on a GPU, here as plain PyTorch; its backward pass needs the GPU."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    this = small(name, bias=bias)
    assert refusal(Call(peers_attention.flex_attention(this), this), "forward") is None


def test_compiled_peer_passes_the_gate():
    this = problem("depthwise_convolution", (5, 4, 32), batch=2)
    call = Call(next(c for c in peers(this) if c.name == "conv2d-compiled"), this)
    if call.contender.missing:
        pytest.skip(call.contender.missing)
    assert refusal(call, "forward") is None
    torch.compiler.reset()


def wrong_tap(y, x):
    return y + 1e-3 * x


def wrong_gradient(y, x):
    return y + 1e-3 * (x - x.detach())


def leaking(y, x):
    """Only the gradients of other images are wrong."""
    return y + (x - x.detach()).sum(0) * torch.arange(len(x)).eq(len(x) - 1).to(y).view(-1, 1, 1, 1) * 1e-30


def unwritten(y, x):
    y = y.clone()
    y[0] = torch.nan
    return y


def broken(y, x):
    raise RuntimeError("no such kernel\nat line 7")


@pytest.mark.parametrize(
    ("plant", "direction", "complaint"),
    [
        (wrong_tap, "forward", "output: error .* is over the budget of"),
        (wrong_gradient, "backward", "gradient of x: error .* is over the budget of"),
        (leaking, "backward", "gradient of x: images got a gradient from another image"),
        (unwritten, "forward", "output: values of the other images are not finite"),
        (broken, "forward", "RuntimeError: no such kernel"),
    ],
)
def test_planted_error_is_refused_and_not_timed(monkeypatch, capsys, plant, direction, complaint):
    right = aten.depthwise_convolution
    monkeypatch.setattr(aten, "depthwise_convolution", lambda x, *a, **k: plant(right(x, *a, **k), x))
    arguments = ["--ops", "depthwise_convolution", "--impls", "aten", "conv2d", "--direction", direction]
    sizes = ["--shape", "5", "6", "32", "--batch-size", "2", "--rounds", "2", "--seconds", "0", "--device", "cpu"]
    seen = []
    monkeypatch.setattr(
        operators, "timed_rows", lambda entries, *a, **k: seen.extend(rows.timed_rows(entries, *a, **k)) or seen
    )
    assert main(["bench", "ops", *arguments, *sizes]) == 1
    wrong, peer = seen
    assert wrong["ms"] is None
    assert wrong["peak_bytes"] is None
    assert not wrong["times_as_fast_as"]
    assert peer["refused"] is None
    assert peer["ms"]["p50"] > 0
    assert "refused: aten: " in capsys.readouterr().out
    assert re.match(complaint, wrong["refused"])


def test_right_numbers_exit_with_0(capsys):
    command = "bench ops --ops local_mlp --impls aten --shape 7 7 32 --batch-size 1 --rounds 1 --seconds 0 --device cpu"
    assert main(command.split()) == 0
    assert f"aten{' (auto)' if kernels.choose('local_mlp') == 'aten' else ''} " in capsys.readouterr().out


def test_results(benched):
    output, returned = benched
    results = strict((output / "results.json").read_text())
    assert results == strict(json.dumps(returned))
    assert results.keys() == {
        "kind", "is_complete", "settings", "limits", "rows", "left_out", "environment", "command", "commit",
    }  # fmt: skip
    assert results["is_complete"]
    assert results["settings"]["graph"] is False
    assert {(row["name"], row["direction"]) for row in results["rows"]} == {(n, d) for n in NAMES for d in DIRECTIONS}
    for row in results["rows"]:
        assert row.keys() == {
            "group", "name", "shape", "dtype", "direction", "implementation", "is_ours", "is_auto", "label", "bytes",
            "matrix_macs", "vector_macs", "floor_ms", "floor_is", "peak_bytes", "refused", "ms", "images_per_second",
            "over_floor", "times_as_fast_as",
        }  # fmt: skip
        assert row["refused"] is None
        assert row["shape"] == [2, 8, 9, 32]
        assert 0 < row["ms"]["p20"] <= row["ms"]["p50"] <= row["ms"]["p80"]
        assert row["images_per_second"] == pytest.approx(2e3 / row["ms"]["p50"])
        assert row["over_floor"] == pytest.approx(row["ms"]["p50"] / row["floor_ms"])
        assert row["peak_bytes"] >= 2 * 8 * 9 * 32 * 4
        group = [r["label"] for r in results["rows"] if r["group"] == row["group"]]
        assert set(row["times_as_fast_as"]) == set(group) - {row["label"]}
        assert row["is_auto"] == (row["label"] == kernels.choose(row["name"].removesuffix("_shifted")))


def test_what_cannot_take_part_is_named_with_the_reason(benched):
    left_out = benched[1]["left_out"]
    assert left_out["flex-attention of window_attention"] == "it needs CUDA"
    assert left_out["partition-sdpa of window_attention"] == "windows of 7 do not divide the map"


def test_table_and_figure(benched):
    output, results = benched
    table = (output / "table.md").read_text()
    assert table.count("**") == 2 * len({row["group"] for row in results["rows"]})
    taken = {kernels.choose(name.removesuffix("_shifted")) for name in NAMES}
    assert all(f"| {impl} (auto) |" in table for impl in taken)
    assert (output / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_work_of_known_numbers():
    """A map of one position: of 49 taps one is inside."""
    work = problem("depthwise_convolution", (1, 1, 32), batch=2).work("forward")
    assert work == Work(4 * (2 * 32 + 32 * 49 + 32 + 2 * 32), 0, 2 * 32)
    work = problem("projected_inhomogeneous_convolution", (1, 1, 32), batch=1, dtype=torch.float16).work("backward")
    inputs = 32 + 8 + 32 * 49 * 8 + 32 * 49
    assert work == Work(2 * (2 * inputs + 32), 3 * 32 * 49 * 8, 2 * 32)


@pytest.mark.parametrize(
    ("name", "connections"),
    [
        ("inhomogeneous_convolution", (7 * 9 - 12) * (7 * 10 - 12)),
        ("neighborhood_attention", 9 * 10 * 49),
        ("window_attention", (7**2 + 2**2) * (7**2 + 3**2)),
        (SHIFTED, (3**2 + 6**2) * (3**2 + 7**2)),
    ],
)
def test_taps_outside_of_the_map_are_not_counted(name, connections):
    this = problem(name, (9, 10, 64), batch=3)
    assert this.products == 3 * 64 * connections


@pytest.mark.parametrize("name", NAMES)
def test_kernels_of_another_size_pass_the_gate(name):
    this = small(name, (10, 5), kernel_size=5)
    for contender in (*contenders.own(this), *peers(this)):
        if not contender.missing and not contender.name.endswith("compiled"):
            for direction in DIRECTIONS:
                assert refusal(Call(contender, this), direction) is None, (contender.name, direction)


def test_work_of_a_kernel_of_another_size():
    work = problem("depthwise_convolution", (1, 1, 32), batch=2, kernel_size=3).work("forward")
    assert work == Work(4 * (2 * 32 + 32 * 9 + 32 + 2 * 32), 0, 2 * 32)
    this = problem("inhomogeneous_convolution", (4, 5, 32), batch=3, kernel_size=3)
    assert this.products == 3 * 32 * (3 * 4 - 2) * (3 * 5 - 2)
    assert cases([SHIFTED], [STAGES[4]], 3) == [(SHIFTED, STAGES[4])]


def test_the_size_of_the_kernel_is_told(quickly_measured):
    results = bench_operators(ops=["local_mlp"], impls=["aten"], direction=["forward"], **{**SMALL, "kernel_size": 3})
    assert results["settings"]["kernel_size"] == 3
    assert [row["group"] for row in results["rows"]] == ["local_mlp 2 x 8 x 9 x 32 float32, 3 x 3, forward"]


def test_floor_of_known_numbers():
    rates = Limits(bytes_per_second=100.0, matrix_macs_per_second=1000.0, vector_macs_per_second=10.0)
    assert rates.floor(Work(200)) == (2.0, "memory")
    assert rates.floor(Work(200, matrix_macs=5000)) == (5.0, "matrix")
    assert rates.floor(Work(200, matrix_macs=5000, vector_macs=60)) == (6.0, "vector")


def test_rates_are_measured_and_precision_is_as_before():
    rates = limits.measure("cpu", torch.bfloat16)
    assert rates.bytes_per_second > 1e6
    assert rates.matrix_macs_per_second >= rates.vector_macs_per_second > 1e6
    assert torch.get_float32_matmul_precision() == "highest"


def test_shapes_and_cases():
    assert cases([SHIFTED], list(STAGES.values())) == [(SHIFTED, STAGES[stage]) for stage in (1, 2, 3)]
    assert len(cases(NAMES, list(STAGES.values()))) == 4 * len(NAMES) - 1
    assert STAGES[4][:2] == (KERNEL, KERNEL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_benchmark_saves_what_it_has(number, monkeypatch, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    whole = rows.timed_rows
    calls = []

    def interrupted(*args, **options):
        calls.append(None)
        if len(calls) == 2:
            signal.raise_signal(number)
        return whole(*args, **options)

    monkeypatch.setattr(operators, "timed_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench_operators(ops=["local_mlp"], impls=["aten"], output=tmp_path / "run", **SMALL)
    results = strict((tmp_path / "run" / "results.json").read_text())
    assert signal.getsignal(signal.SIGTERM) is before
    assert not results["is_complete"]
    assert [row["direction"] for row in results["rows"]] == ["forward"]
    assert "interrupted" in (tmp_path / "run" / "table.md").read_text()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"results.json", "table.md", "figure.png"}


def test_rows_are_kept_whatever_ends_the_process(monkeypatch, tmp_path):
    """They are written before the next group: a GPU that does not answer ends by SIGKILL, or in errors without end."""
    whole = rows.timed_rows
    found = []

    def fails(*args, **options):
        if (tmp_path / "run").exists():
            found.append(strict((tmp_path / "run" / "results.json").read_text()))
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return whole(*args, **options)

    monkeypatch.setattr(operators, "timed_rows", fails)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        bench_operators(ops=["local_mlp"], impls=["aten"], output=tmp_path / "run", **SMALL)
    found.append(strict((tmp_path / "run" / "results.json").read_text()))
    for results in found:
        assert not results["is_complete"]
        assert [row["direction"] for row in results["rows"]] == ["forward"]
    assert len(found) == 2
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"results.json", "table.md", "figure.png"}


def test_benchmark_that_failed_before_its_first_row_writes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(operators, "timed_rows", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench_operators(ops=["local_mlp"], impls=["aten"], output=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_threads_and_ways_of_cudnn_are_as_before(monkeypatch):
    seen, cudnn = [], torch.backends.cudnn

    def measure(*_):
        seen.append((torch.get_num_threads(), cudnn.benchmark, cudnn.allow_tf32))
        return Limits(1.0, 1.0, 1.0)

    before = cudnn.benchmark, cudnn.allow_tf32
    monkeypatch.setattr(operators, "measure", measure)
    monkeypatch.setattr(models, "measure", measure)
    bench_operators(ops=["local_mlp"], impls=["aten"], threads=2, **SMALL)
    small_net = {
        "batch_size": 1,
        "img_size": 24,
        "modes": ["eager"],
        "direction": ["inference"],
        "rounds": 1,
        "seconds": 0.0,
    }
    models.bench_models(nets=["dwnet_nano"], device="cpu", threads=2, **small_net)
    assert seen == 2 * [(2, True, False)]
    assert torch.get_num_threads() == 1
    assert (cudnn.benchmark, cudnn.allow_tf32) == before == (False, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ops": ["window_atention"]}, "ops: .* got 'window_atention'; the nearest are window_attention"),
        ({"ops": ["zzz"]}, "ops: .* got 'zzz'; there are depthwise_convolution"),
        ({"impls": ["unfolded"]}, "impls: .* got 'unfolded'; the nearest are unfold"),
        ({"stages": [5], "shape": None}, "stages: expected numbers among 1, 2, 3, 4, got 5"),
        ({"stages": [1]}, "shape: expected either stages or shape, got both"),
        ({"shape": (7, 7, 33)}, "shape: expected C to be a multiple of 32, got 33"),
        ({"shape": (7, 0, 32)}, "shape: expected an int of at least 1, got 0"),
        ({"shape": (7, 7)}, r"shape: expected H, W, C, got \[7, 7\]"),
        ({"batch_size": 0}, "batch_size: expected an int of at least 1, got 0"),
        ({"kernel_size": 4}, "kernel_size: expected an odd int of at least 3, got 4"),
        ({"dtype": "float64"}, "dtype: expected one of 'float32', .*, got 'float64'"),
        ({"device": "tpu"}, "device: expected one of 'auto', 'cpu', 'cuda', got 'tpu'"),
        ({"direction": ["sideways"]}, "direction: expected one of 'forward', 'backward', got 'sideways'"),
        ({"rounds": 0}, "rounds: expected an int of at least 1, got 0"),
        ({"output": __file__}, "output: expected a folder, got .*test_operators.py, a file"),
        ({"seconds": -1.0}, "seconds: expected at least 0, got -1.0"),
        ({"threads": 0}, "threads: expected an int of at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        bench_operators(**{**SMALL, "output": tmp_path / "output", **arguments})
    assert not (tmp_path / "output").exists()


def test_digits():
    assert [report.short(n) for n in (0, 0.5, 12, 99.99, 1e6)] == ["0", "0.500", "12.0", "100", "1,000,000"]
