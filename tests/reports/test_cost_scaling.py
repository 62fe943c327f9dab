import json

import pytest
from matplotlib.axes import Axes

from localmix.axes import MIXERS
from localmix.cli import main
from localmix.reports.cost_scaling import GROWTH, fit, scaling


@pytest.fixture(scope="module")
def results():
    return scaling()


def test_exponents_that_follow_from_the_formulas(results):
    exponents = results["exponents"]["macs"]
    # each position costs the same, whatever the mixer; the two maps of the pooled image do not grow with it
    for name, by_axis in exponents.items():
        assert by_axis["side"] == pytest.approx(2, abs=1e-3 if name != "homogeneous_convolution" else 0.3)
    for name in ("depthwise_convolution", "local_mlp"):
        assert exponents[name]["kernel"] == pytest.approx(2)
        assert exponents[name]["channels"] == pytest.approx(1)
    for name in ("window_attention", "neighborhood_attention"):
        # projections that know no kernel, of as many channels in as out
        assert 0.2 < exponents[name]["kernel"] < 2
        assert 1 < exponents[name]["channels"] < 2


def test_a_row_for_each_mixer_and_size(results):
    assert len(results["rows"]) == len(MIXERS) * sum(map(len, GROWTH.values()))
    row = next(r for r in results["rows"] if (r["mixer"], r["axis"], r["kernel"]) == ("local_mlp", "kernel", 11))
    assert row["macs"] == 56 * 56 * 96 * 11**2
    assert row["ms"] is None


def test_a_planted_power_is_found():
    assert fit([3, 5, 7], [2 * 3**1.5, 2 * 5**1.5, 2 * 7**1.5]) == pytest.approx(1.5)


def test_files_with_times(tmp_path, capsys, monkeypatch):
    growth = {"kernel": (3, 5), "side": (7, 14), "channels": (32, 64)}
    monkeypatch.setattr("localmix.reports.cost_scaling.GROWTH", growth)
    monkeypatch.setattr("localmix.reports.cost_scaling.BASE", {"kernel": 3, "side": 7, "channels": 32})
    labels = []
    named = Axes.set_ylabel
    monkeypatch.setattr(Axes, "set_ylabel", lambda self, *a, **k: (labels.append(a[0]), named(self, *a, **k)))
    options = ["--throughput", "--batch-size", "3", "--mixers", "local_mlp"]
    assert main(["cost", "--scaling", *options, "--output", str(tmp_path)]) == 0
    assert [label for label in labels if label] == [
        "multiply-adds of one image [millions]",
        "time of a forward pass, batch 3 [ms]",
    ]
    written = json.loads((tmp_path / "results.json").read_text())
    assert set(written["exponents"]) == {"macs", "ms"} and list(written["exponents"]["ms"]) == ["local_mlp"]
    assert all(row["ms"] > 0 for row in written["rows"])
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "exponents of time" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mixers", "local_mpl"], "mixers: expected known names, got 'local_mpl'; the nearest are local_mlp"),
        (["--task", "detection"], "scaling: expected neither networks nor their options, got ['--task']"),
        (["--device", "tpu"], "device: expected one of"),
        (["--output", __file__], "output: expected a folder, got"),
    ],
)
def test_wrong_requests(arguments, message, capsys):
    assert main(["cost", "--scaling", *arguments]) == 2
    assert message in capsys.readouterr().err
