import pytest
import torch

SIZES = {"nano": (24, (2, 2, 4, 1), 2, 8), "tiny": (96, (2, 2, 6, 2), 4, 32), "base": (128, (2, 2, 18, 2), 4, 32)}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def shapes_of_official(family, *, dim, depths, patch=4, groups=32, classes=1000, kernel=7):
    """Name and shape of each weight of a DWNet as its authors' code stores them; `family` is the stem here."""
    shapes = {}

    def put(name, *shape, bias=True):
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    def batch_norm(name, channels):
        shapes.update({f"{name}.{part}": (channels,) if part != NORM[-1] else () for part in NORM})

    put("patch_embed.proj", dim, 3, patch, patch)
    put("patch_embed.norm", dim)
    for stage, depth in enumerate(depths):
        c = dim * 2**stage
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            conv = f"{name}.attn2conv.conv"
            put(f"{conv}0", c, c, 1, 1, bias=False)
            batch_norm(f"{name}.attn2conv.bn0", c)
            if family == "dwnet":
                put(conv, c, 1, kernel, kernel)
            elif family == "dynamic_dwnet":
                shapes[f"{conv}.bias"] = (c,)
                put(f"{conv}.conv1", c // 4, c, 1, 1, bias=False)
                batch_norm(f"{conv}.bn", c // 4)
                put(f"{conv}.conv2", c * kernel**2, c // 4, 1, 1)
            else:
                put(f"{conv}.conv1.0", c // 4, c, 1, 1)
                batch_norm(f"{conv}.conv1.1", c // 4)
                put(f"{conv}.conv2.0", groups * kernel**2, c // 4, 1, 1)
            batch_norm(f"{name}.attn2conv.bn", c)
            put(f"{conv}2", c, c, 1, 1, bias=False)
            batch_norm(f"{name}.attn2conv.bn2", c)
            put(f"{name}.mlp.fc1", 4 * c, c)
            put(f"{name}.mlp.fc2", c, 4 * c)
            batch_norm(f"{name}.bn", c)
        if stage < len(depths) - 1:
            put(f"layers.{stage}.downsample.reduction", 2 * c, 4 * c, bias=False)
            put(f"layers.{stage}.downsample.norm", 4 * c)
    put("norm", c)
    if classes:
        put("head", classes, c)
    return shapes


def random_weights(shapes):
    """Values that all count: no bias is zero, no scale is one, batch statistics are not those at the start."""
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.randint(1, 1000, ())
        elif name.endswith("running_var"):
            weights[name] = 0.5 + torch.rand(shape)
        elif name.endswith("relative_position_bias_table"):
            weights[name] = torch.randn(shape)
        elif len(shape) > 1:
            weights[name] = torch.randn(shape) / shape[1:].numel() ** 0.5
        elif name.endswith("weight"):
            weights[name] = 1 + 0.3 * torch.randn(shape)
        else:
            weights[name] = 0.3 * torch.randn(shape)
    return weights


@pytest.fixture
def official():
    """Makes a checkpoint of the authors' code: official("dwnet", "nano") or with sizes of one's own."""

    def make(family, size=None, **sizes):
        if size is not None:
            dim, depths, patch, groups = SIZES[size]
            sizes = {"dim": dim, "depths": depths, "patch": patch, "groups": groups, **sizes}
        torch.manual_seed(0)
        shapes = shapes_of_official(family, **sizes)
        return random_weights({name: torch.Size(shape) for name, shape in shapes.items()})

    return make


@pytest.fixture
def randomised():
    """Gives a module such random weights; returns it."""

    def randomise(module):
        torch.manual_seed(0)
        module.load_state_dict(random_weights({name: value.shape for name, value in module.state_dict().items()}))
        return module

    return randomise
