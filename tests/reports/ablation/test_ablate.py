import json
import os
import signal
import subprocess
import sys
import time

import pytest

from localmix.cli import main
from localmix.reports import runs
from localmix.reports.ablation import ablate as module
from localmix.reports.ablation.ablate import ablate
from localmix.reports.ablation.statistics import difference
from localmix.reports.ablation.studies import STUDIES, Net, Study
from localmix.reports.cost import Cost

SMALL = {"img_size": 16, "batch_size": 8, "steps": 2, "processes": 1, "seeds": [0, 1]}
NAMES = ["norm-convolution", "squeeze-excitation"]


@pytest.fixture(scope="module")
def ablated(few_images, tmp_path_factory):
    output = tmp_path_factory.mktemp("ablate")
    return output, ablate(NAMES, output=output, **SMALL)


def strict(path):
    def refuse(constant):
        raise ValueError(constant)

    return json.loads(path.read_text(), parse_constant=refuse)


def test_results(ablated):
    output, returned = ablated
    results = strict(output / "results.json")
    assert results == json.loads(json.dumps(returned))
    assert [study["name"] for study in results["studies"]] == NAMES
    assert results["missing"] == []
    assert results["settings"]["seeds"] == [0, 1]
    assert (results["settings"]["epochs"], results["settings"]["steps"]) == (1, 2)
    assert results["images"] == {"train": 24, "validation": 8, "skipped": []}
    assert {"environment", "command", "commit", "level"} <= results.keys()
    for study in results["studies"]:
        top1 = {point["label"]: [run["top1"] for run in point["runs"]] for point in study["points"]}
        for point in study["points"]:
            assert point["net"] == STUDIES[study["name"]].nets[point["label"]].name
            assert point["parameters"] > 500_000 and point["macs"] > 1_000_000
            assert point["top1_mean"] == pytest.approx(sum(top1[point["label"]]) / 2)
            assert [(run["seed"], run["steps"]) for run in point["runs"]] == [(0, 2), (1, 2)]
            if point["label"] == study["baseline"]:
                assert point["difference"] is None
            else:
                expected = difference(top1[point["label"]], top1[study["baseline"]])
                assert (point["difference"], point["p"]) == (expected.mean, expected.p)


def test_claims_are_those_of_the_corrected_p_values(monkeypatch, tmp_path):
    """Planted: an effect, one that the correction takes back, and none."""
    study = STUDIES["heads"]
    planted = {
        "3-6-12-24": [0.80, 0.82, 0.81, 0.83],
        "1-2-4-8": [0.70, 0.7205, 0.7095, 0.73],
        "2-4-8-16": [0.808, 0.829, 0.832, 0.8405],
        "6-12-24-48": [0.81, 0.81, 0.82, 0.82],
    }
    by_net = {study.nets[label]: label for label in planted}
    monkeypatch.setattr(module, "ends", lambda net, output: [{"top1": value} for value in planted[by_net[net]]])
    nets = study.nets.values()
    row = module._row(study, dict.fromkeys(nets, Cost(1, 1)), {net: net for net in nets}, tmp_path)
    points = {point["label"]: point for point in row["points"]}
    assert {label: point["distinguishable"] for label, point in points.items()} == {
        "3-6-12-24": None,
        "1-2-4-8": True,
        "2-4-8-16": False,
        "6-12-24-48": False,
    }
    assert points["2-4-8-16"]["p"] < 0.05 < points["2-4-8-16"]["p_holm"]
    assert points["1-2-4-8"]["difference"] == pytest.approx(-0.1)


def test_a_net_of_two_studies_is_trained_once(ablated):
    output, results = ablated
    folders = [{run["folder"] for point in study["points"] for run in point["runs"]} for study in results["studies"]]
    assert len(folders[0] & folders[1]) == 2
    assert len(folders[0] | folders[1]) == len(list(output.glob("runs/*/seed-*"))) == 10


def test_runs_see_the_same_batches_and_differ_in_the_net_alone(ablated):
    output, _ = ablated
    kept = [json.loads(path.read_text()) for path in sorted(output.glob("runs/*/seed-0/settings.json"))]
    assert len({json.dumps(settings.pop("model_kwargs"), sort_keys=True) for settings in kept}) == 5
    assert all(settings == kept[0] for settings in kept)
    losses = {(path / "metrics.csv").read_text() for path in output.glob("runs/*/seed-0")}
    assert len(losses) == 5


def test_files(ablated):
    output, _ = ablated
    assert {"results.json", "report.md", "table.md", "figure.png", "runs"} <= {path.name for path in output.iterdir()}
    assert str(output) not in (output / "report.md").read_text() + (output / "results.json").read_text()


def test_finished_runs_are_kept_and_other_studies_added(ablated, monkeypatch):
    output, before = ablated
    trained = []
    monkeypatch.setattr(runs, "train_all", lambda jobs, *a, **k: trained.extend(jobs))
    after = ablate(NAMES, output=output, **SMALL)
    assert not trained
    assert after["studies"] == before["studies"]
    ablate(["norm-convolution", "kernel-size"], output=output, **SMALL)
    assert len(trained) == 4 * 2, "all but the kernel of 7"


def test_other_settings_in_the_same_output_are_refused(ablated):
    with pytest.raises(ValueError, match=r"output: .*seed-0 holds .*: steps 2 \(now 3\); "):
        ablate(NAMES, output=ablated[0], **{**SMALL, "steps": 3})


def test_what_is_complete_is_written_while_the_rest_trains(few_images, tmp_path, monkeypatch):
    seen = []
    real = module.report
    monkeypatch.setattr(
        module, "report", lambda results, output: (seen.append(results["missing"]), real(results, output))
    )
    nets = {"batch norm": Net.parse("sliding3/shared-positions/groups8/static")}
    nets["layer norm"] = Net.parse("sliding3/shared-positions/groups8/static/layer-norm")
    dearer = dict(nets, **{"batch norm": Net.parse("sliding5/shared-positions/groups8/static")})
    for name, chosen in (("one", nets), ("two", dearer)):
        monkeypatch.setitem(STUDIES, name, Study(name, name, "?", chosen, "batch norm"))
    ablate(["one", "two"], output=tmp_path, **{**SMALL, "seeds": [0]})
    assert seen == [["two"], []]
    assert "One seed" in (tmp_path / "report.md").read_text()


def test_from_a_net(few_images, tmp_path, monkeypatch):
    start = "sliding3/shared-positions/groups8/static"
    whole = module.flips
    monkeypatch.setattr(module, "flips", lambda net: [s for s in whole(net) if s.name in ("from-norm", "from-weights")])
    results = ablate(start=start, output=tmp_path, **{**SMALL, "seeds": [0]})
    assert [study["name"] for study in results["studies"]] == ["from-weights", "from-norm"]
    assert "Left out: inhomogeneous: positions: expected unshared-positions" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"studies: expected names among channels-convolution, .*, or all, or a net to start from"),
        ({"studies": ["kernelsize"]}, r"studies: expected known names, got 'kernelsize'; the nearest are kernel-size"),
        ({"studies": ["heads", "heads"]}, r"studies: expected one or more different values"),
        ({"studies": ["all", "heads"]}, r"studies: expected all alone or names of studies, got \['all', 'heads'\]"),
        ({"start": "sliding7/shared-positions/groups8"}, r"^from: expected connectivity/positions/channels/weights"),
        (
            {"start": "sliding7/shared-positions/groups7/static"},
            r"groups7/static is no net of localmixer_nano: num_",
        ),
        ({"studies": ["heads"], "size": "base"}, r"size: expected one of 'nano', 'tiny', got 'base'"),
        ({"studies": ["heads"], "steps": 0}, r"steps: expected an int of at least 1, got 0"),
        ({"studies": ["heads"], "epochs": 0}, r"epochs: expected an int of at least 1, got 0"),
        ({"studies": ["heads"], "seeds": [1, 1]}, r"seeds: expected one or more different values"),
        ({"studies": ["heads"], "lr": -1.0}, r"lr: expected more than 0, got -1.0"),
    ],
)
def test_wrong_arguments_are_refused(few_images, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        ablate(output=tmp_path / "output", **arguments)
    assert not (tmp_path / "output").exists()


def test_list_on_the_command_line(capsys):
    assert main(["ablate", "--list"]) == 0
    assert "kernel-size: " in capsys.readouterr().out
    assert main(["ablate"]) == 2
    assert "studies: expected names among" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="kills a group of processes")
def test_interrupted_study_ends_as_an_uninterrupted_one(image_folder, tmp_path, monkeypatch):
    """kill -9 while two processes train; called again, it has the numbers of a run in one piece."""
    settings = {"data": str(image_folder), "epochs": 12, "img_size": 16, "batch_size": 16, "workers": 0}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "localmix", "ablate", "norm-convolution", *flags, "--seeds=0", "--processes=2"]
    parts = tmp_path / "parts"
    shown = tmp_path / "stderr"
    with shown.open("w") as stderr:
        process = subprocess.Popen([*command, "--output", str(parts)], stderr=stderr, start_new_session=True)
    end = time.monotonic() + 200
    while not list(parts.glob("runs/*/seed-0/checkpoint.ckpt")):
        assert process.poll() is None and time.monotonic() < end, shown.read_text()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (parts / "results.json").exists()
    assert not list(parts.glob("runs/*/seed-0/result.json"))
    monkeypatch.setattr(runs, "cpu_cores", lambda: 1)  # a thread for each run, as the two processes had
    folders = parts, tmp_path / "whole"
    results = [ablate(["norm-convolution"], output=folder, seeds=[0], processes=1, **settings) for folder in folders]
    for points in results[0]["studies"][0]["points"], results[1]["studies"][0]["points"]:
        for point in points:
            point["runs"][0].pop("seconds")
    assert results[0]["studies"] == results[1]["studies"]
    for one in sorted(parts.glob("runs/*/seed-0/metrics.csv")):
        assert one.read_text() == (tmp_path / "whole" / one.relative_to(parts)).read_text()
