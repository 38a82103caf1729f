"""studies/peers.py runs the real rules of other libraries: what they do is known in closed form."""

import peers as script
import pytest
import torch

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
    rules = script.peer_rules(model, weights)
    for library in ("timm", "smp"):
        assert torch.allclose(rules[library](slices), right, rtol=1e-6)


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


def test_gray_error_in_closed_form():
    colours = torch.tensor([1.0, 2, 4]).view(1, 3, 1, 1)
    assert script.gray_error(colours[:, [0, 1, 2, 0, 1]] * 3 / 5, colours) == pytest.approx(1 / 7)  # 6 for 7
    assert script.gray_error(torch.full((1, 5, 1, 1), 7 / 5), colours) == pytest.approx(0, abs=1e-6)
