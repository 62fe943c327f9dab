import pytest
import torch

from localmix.models import create_model
from localmix.reports.ablation.flips import flips
from localmix.reports.ablation.studies import STUDIES, Net, listing

NETS = list({net.name: net for study in STUDIES.values() for net in study.nets.values()}.values())


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_a_study_compares_different_nets_with_one_of_them(study):
    assert study.baseline in study.nets
    assert len(set(study.nets.values())) == len(study.nets) >= 2


def test_every_study_of_the_paper_is_there():
    about = {name.split("-")[0] for name in STUDIES}
    assert about == {
        "channels", "positions", "weights", "kernel", "window", "heads", "norm", "squeeze", "connectivity",
        "normalisation",
    }  # fmt: skip
    assert list(STUDIES["kernel-size"].nets) == list(STUDIES["window-size"].nets) == ["3", "5", "7", "9", "11"]


def test_baselines_are_shared_so_that_they_are_trained_once():
    assert len(NETS) < sum(len(study.nets) for study in STUDIES.values()) - 8


@pytest.mark.parametrize("net", NETS, ids=[net.name for net in NETS])
def test_names_parse_back_and_make_the_net(net):
    assert Net.parse(net.name) == net
    assert "/" not in net.folder
    with torch.device("meta"):
        model = create_model("localmixer_nano", num_classes=10, in_chans=1, **net.arguments)
    norms = {type(module).__name__ for module in model.stages[0].blocks[0].children()}
    assert ({"batch": "BatchNorm2d", "layer": "LayerNorm"}[net.norm] in norms) is True
    assert any(type(module).__name__ == "SqueezeExcitation" for module in model.modules()) is net.squeeze_excitation


def test_folders_of_different_nets_differ():
    assert len({net.folder for net in NETS}) == len(NETS)


def test_block_and_norm_follow_from_the_weights_unless_they_are_named():
    attention = "sliding7/unshared-positions/groups8/dot-product"
    assert (Net.parse(attention).block, Net.parse(attention).norm) == ("swin", "layer")
    assert Net.parse(f"dwnet/{attention}/layer-norm").name == f"dwnet/{attention}/layer-norm"
    assert Net.parse(f"dwnet/{attention}/batch-norm").name == f"dwnet/{attention}"
    assert Net.parse(f"{attention}/squeeze-excitation").squeeze_excitation


@pytest.mark.parametrize(
    "name", ["", "dwnet", "layer-norm", "resnet/sliding7/shared-positions/groups8/static", "a/b/c/d"]
)
def test_a_name_of_no_net_is_refused(name):
    with pytest.raises(ValueError, match=r"^(point|connectivity): expected "):
        Net.parse(name)


@pytest.mark.parametrize(
    "name",
    [
        "dwnet/sliding7/shared-positions/unshared-channels/static",
        "swin/window7-shift3-pad/unshared-positions/groups3,6,12,24/dot-product",
        "dwnet/window7-shift3/shared-windows/groups8/static/layer-norm/squeeze-excitation",
        "dwnet/sliding7x5/shared-windows14/groups4/mixture2/softmax",
        "swin/window7-shift3/unshared-positions/groups3/dot-product/free",
        "dwnet/sliding7/unshared-positions/groups8/dot-product/free",
    ],
)
def test_flips_change_one_thing(name):
    start = Net.parse(name)
    studies = flips(start)
    assert len({study.name for study in studies}) == len(studies) >= 5
    fields = {
        "connectivity": {"connectivity", "shift", "pad", "period"},
        "size": {"size", "shift"},
        "positions": {"positions", "period"},
        "channels": {"num_groups"},
        # what dot products do at a border belongs to them
        "weights": {"weights", "num_kernels", "connectivity", "pad", "free"},
        "normalisation": {"softmax", "free", "connectivity", "pad"},
        "block": {"block"},
        "norm": {"norm"},
        "squeeze-excitation": {"squeeze_excitation"},
    }
    for study in studies:
        assert study.nets[study.baseline] == start
        for label, net in study.nets.items():
            both = [{**vars(n.point), **{k: v for k, v in vars(n).items() if k != "point"}} for n in (start, net)]
            changed = {key for key in both[0] if both[0][key] != both[1][key]}
            assert changed <= fields[study.name.removeprefix("from-")]
            assert bool(changed) == (label != study.baseline)


@pytest.mark.parametrize(
    ("name", "nets"),
    [
        (
            "swin/window7-shift3-pad/unshared-positions/groups3/dot-product",
            [
                "window7-shift3-pad/unshared-positions/groups3/dot-product",
                "window7-shift3/unshared-positions/groups3/dot-product/free",
            ],
        ),
        (
            "dwnet/sliding7/unshared-positions/groups8/dot-product/free",
            ["sliding7/unshared-positions/groups8/dot-product", "sliding7/unshared-positions/groups8/dot-product/free"],
        ),
        (
            "dwnet/sliding7/shared-positions/groups8/static",
            ["sliding7/shared-positions/groups8/static/softmax", "sliding7/shared-positions/groups8/static"],
        ),
    ],
)
def test_normalisation_is_flipped_with_what_it_has_at_the_border(name, nets):
    study = next(study for study in flips(Net.parse(name)) if study.name == "from-normalisation")
    assert [net.point.name for net in study.nets.values()] == nets
    assert list(study.nets) == ["softmax", "free"]


def test_what_is_no_net_is_left_out_with_the_reason():
    study = next(s for s in flips(Net.parse("sliding7/shared-positions/groups8/static")) if s.name == "from-weights")
    assert list(study.nets) == ["static", "homogeneous", "mixture of 4"]
    assert [reason.split(": expected unshared-positions")[0] for reason in study.left_out] == [
        "inhomogeneous: positions",
        "dot product: positions",
    ]


def test_listing():
    text = listing()
    assert all(name in text for name in STUDIES)
    assert text.count("(baseline)") == len(STUDIES)
