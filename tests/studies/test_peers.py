"""studies/peers.py runs the real rules of other libraries: what they do is known in closed form."""

import peers as script
import pytest
import torch
from torch import nn

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The U-Net of all rows, and the weights of its encoder as a file."""
    return script.build(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def colours(built):
    return built[0].get_submodule(script.STEM).weight.detach()


@pytest.mark.parametrize("slices", [3, 5, 7])
def test_timm_and_smp_repeat_the_colours(built, colours, slices):
    model, weights = built
    right = colours[:, [k % 3 for k in range(slices)]] * (3 / slices)
    for stem in [
        rule(slices) for library, rule in script.peer_rules(model, weights) if library in ("timm", "smp")
    ]:
        assert torch.allclose(stem, right, rtol=1e-6)


def test_monai_leaves_a_stem_of_another_width_random(built, colours):
    model, _ = built
    assert torch.equal(script.monai_stem(model, 3), colours)
    drawn = script.monai_stem(model, 5)
    assert drawn.shape == (32, 5, 3, 3)
    assert drawn.abs().max() < 0.2 * colours.abs().max()  # nothing of what was pretrained


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fastai uses torch.jit.script
@pytest.mark.parametrize("slices", [3, 5])
def test_fastai_keeps_three_and_sets_the_others_to_zero(built, colours, slices):
    pytest.importorskip("fastai", reason="the dependency group peers is not installed")
    stem = script.fastai_stem(built[0], slices)
    assert torch.equal(stem[:, :3], colours)
    assert stem[:, 3:].abs().sum() == 0


def conv(*weights):
    layer = nn.Conv2d(len(weights), 1, 1, bias=False)
    layer.weight.data = torch.tensor(weights).view(1, -1, 1, 1)
    return layer


def constant(*values):
    return torch.tensor(values)[None, :, None, None].expand(1, -1, 4, 4)


def test_gray_error_in_closed_form():
    network, window = conv(1.0, 2.0, 4.0), constant(1.0, 2.0, 3.0)
    # gray 2: 14 where the colours give 6
    assert script.gray_error(network, conv(1.0, 1.0, 1.0), window) == pytest.approx(8 / 14)
    five = conv(*[3 / 5] * 5)
    assert script.gray_error(five, conv(1.0, 1.0, 1.0), constant(9.0, 9, 2, 9, 9)) == pytest.approx(
        0, abs=1e-6
    )
