import pytest
import torch

from nodes import mask
from nodes.cells import cells
from nodes.types import Latent, LatentSpace, Mask

BOX = mask.rectangle(64, 64, x=21, y=13, w=24, h=24)  # columns 21 to 44, rows 13 to 36


def latent(height=8, width=8, downscale=8):
    return Latent(torch.zeros(1, 4, height, width), LatentSpace(downscale=downscale))


def test_a_cell_is_repainted_where_half_of_it_is_as_the_webui_rounds():
    expected = torch.zeros(8, 8)
    expected[2:4, 3:6] = 1
    expected[4, 3:5] = 1
    assert torch.equal(cells(BOX, latent(), 1), expected[None, None])


@pytest.mark.parametrize(("level", "rounded"), [(127, 0.0), (128, 1.0)])
def test_a_level_of_128_is_the_first_to_count(level, rounded):
    grey = Mask(torch.full((1, 1, 64, 64), level, dtype=torch.uint8))
    assert cells(grey, latent(), 1).unique().tolist() == [rounded]
    torch.testing.assert_close(cells(grey, latent(), 1, rounded=False).unique(), torch.tensor([level / 255]))


def test_unrounded_cells_are_the_bicubic_levels():
    soft = cells(BOX, latent(), 1, rounded=False)
    assert torch.equal(cells(BOX, latent(), 1), (soft >= 128 / 255).float())
    assert 0 < soft[0, 0, 1, 4] < 0.5 < soft[0, 0, 4, 4] < 1
    assert soft[0, 0, 3, 4] == 1


def test_the_latents_own_downscale_counts():
    assert cells(BOX, latent(16, 16, downscale=4), 1).sum() == 36


def test_each_picture_may_have_its_own_mask():
    both = Mask(torch.cat([BOX.data, 255 - BOX.data]))
    assert torch.equal(cells(both, latent(), 2)[1], 1 - cells(BOX, latent(), 2)[0])
    with pytest.raises(ValueError, match="2 masks for 3 pictures; give one mask, or as many as pictures"):
        cells(both, latent(), 3)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="the mask has 64 x 64 px, the latent 128 x 64 px"):
        cells(BOX, latent(8, 16), 1)
