"""Upscale models: what is recognised, what comes out, what is refused."""

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional
from upscalers import compact, first, newest, rrdbnet, second

from nodes.diffusion.tensors import LoadError
from nodes.diffusion.tiling import Tiling
from nodes.diffusion.upscale import RRDBNet, enlarge, network, scale


def picture(height=24, width=20, count=1):
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def saved(tensors, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def loaded(tensors, tmp_path, dtype=torch.float32):
    return network(saved(tensors, tmp_path), dtype, "cpu")


def conv(tensors, name, x):
    return functional.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], padding=1)


def by_formula(tensors, x, blocks, doublings, grain):
    """ESRGAN, written down once more from the paper and the names of its tensors."""
    x = x.view(1, 3, x.shape[2] // grain, grain, x.shape[3] // grain, grain).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    start = now = conv(tensors, "conv_first", x)
    for block in range(blocks):
        entered = now
        for dense in (1, 2, 3):
            seen = [now]
            for layer in (1, 2, 3, 4):
                made = conv(tensors, f"body.{block}.rdb{dense}.conv{layer}", torch.cat(seen, 1))
                seen.append(torch.where(made > 0, made, 0.2 * made))
            now = seen[0] + 0.2 * conv(tensors, f"body.{block}.rdb{dense}.conv5", torch.cat(seen, 1))
        now = entered + 0.2 * now
    now = start + conv(tensors, "conv_body", now)
    for index in range(doublings):
        made = conv(tensors, f"conv_up{index + 1}", now.repeat_interleave(2, 2).repeat_interleave(2, 3))
        now = torch.where(made > 0, made, 0.2 * made)
    made = conv(tensors, "conv_hr", now)
    return conv(tensors, "conv_last", torch.where(made > 0, made, 0.2 * made))


@pytest.mark.parametrize(("doublings", "grain", "factor"), [(2, 1, 4), (1, 1, 2), (0, 1, 1), (2, 2, 2), (2, 4, 1)])
def test_rrdbnet_is_what_the_paper_says(doublings, grain, factor, tmp_path):
    tensors = newest(rrdbnet(doublings, grain, blocks=2))
    made = loaded(tensors, tmp_path)
    assert (scale(tmp_path / "model.safetensors"), made.scale, made.grain) == (factor, factor, grain)
    x = torch.rand(1, 3, 16, 8, generator=torch.Generator().manual_seed(1))
    expected = by_formula(tensors, x, 2, doublings, grain)
    assert expected.shape == (1, 3, 16 * factor, 8 * factor)
    assert expected.std() > 0.03
    torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_the_compact_one_adds_what_it_finds_to_the_enlarged_picture(factor, tmp_path):
    tensors = newest(compact(factor, layers=3))
    made = loaded(tensors, tmp_path)
    assert made.scale == scale(tmp_path / "model.safetensors") == factor
    x = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    now = x
    for index in range(0, 8, 2):
        now = conv(tensors, f"body.{index}", now)
        now = torch.where(now > 0, now, tensors[f"body.{index + 1}.weight"][:, None, None] * now)
    now = conv(tensors, "body.8", now).view(1, 3, factor, factor, 9, 7).permute(0, 1, 4, 2, 5, 3)
    enlarged = x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    torch.testing.assert_close(made(x), enlarged + now.reshape(enlarged.shape))


@pytest.mark.parametrize(
    "spelling",
    [first, second, newest, lambda made: newest(made, "params_ema."), lambda made: newest(made, "params.")],
    ids=["first", "second", "newest", "params_ema", "params"],
)
@pytest.mark.parametrize(("doublings", "grain"), [(2, 1), (1, 1), (0, 1), (2, 2)])
def test_all_spellings_are_the_same_model(spelling, doublings, grain, tmp_path):
    ours = rrdbnet(doublings, grain, blocks=2)
    made = loaded(spelling(ours), tmp_path)
    assert isinstance(made, RRDBNet)
    assert newest(made).keys() == newest(ours).keys()
    assert torch.equal(enlarge(picture(), made), enlarge(picture(), ours))


def test_levels_go_in_and_come_out_between_0_and_255_and_are_rounded():
    ours = compact(2)
    expected = ((ours(picture() / 255) * 255).clamp(0, 255) + 0.5).floor().to(torch.uint8)
    made = enlarge(picture(), ours)
    assert (made.dtype, made.shape) == (torch.uint8, (1, 3, 48, 40))
    assert torch.equal(made, expected)


def test_a_picture_does_not_depend_on_its_batch():
    images, ours = picture(count=3), rrdbnet(1)
    for tiling in (Tiling(), Tiling(12, 4)):
        together = enlarge(images, ours, tiling)
        assert torch.equal(together[1:2], enlarge(images[1:2], ours, tiling))


@pytest.mark.parametrize(("ours", "reach"), [(compact(3, layers=1), 3), (rrdbnet(2, 2), 40)])
def test_tiles_equal_the_whole_where_the_reach_fits_into_a_quarter_of_the_overlap(ours, reach):
    side = 6 * reach
    images = picture(2 * side, side)
    whole = enlarge(images, ours).int()
    tiled = enlarge(images, ours, Tiling(side, 4 * reach)).int()
    assert (tiled - whole).abs().max() <= 1
    assert (tiled != whole).float().mean() < 0.001
    apart = enlarge(images, ours, Tiling(side)).int()
    assert (apart - whole).abs().max() > 2


@pytest.mark.parametrize("size", [(9, 7), (1, 1), (1, 6), (3, 2)])
def test_odd_sides_are_continued_by_their_mirror_image_and_cut_again(size):
    ours, images = rrdbnet(2, 4), picture(*size)
    made = enlarge(images, ours)
    assert made.shape == images.shape
    if size == (9, 7):
        mirrored = torch.cat([images, images[..., [5]]], 3)
        mirrored = torch.cat([mirrored, mirrored[..., [7, 6, 5], :]], 2)
        assert torch.equal(made, enlarge(mirrored, ours)[..., :9, :7])


def test_progress_counts_tiles_over_all_pictures():
    seen = []
    enlarge(picture(count=2), compact(2), Tiling(16, 8), progress=lambda *now: seen.append(now))
    assert seen == [(done, 8) for done in range(1, 9)]


def test_what_overflows_is_computed_again_in_float32(tmp_path):
    tensors = newest(compact(2))
    tensors["body.0.weight"] *= 1e6
    tensors["body.2.weight"] *= 1e-6
    half, full = (loaded(tensors, tmp_path, dtype) for dtype in (torch.float16, torch.float32))
    asked = []
    made = enlarge(picture(count=2), half, wider=lambda: (asked.append(1), full)[1])
    assert asked == [1, 1]
    assert torch.equal(made, enlarge(picture(count=2), full))
    with pytest.raises(
        FloatingPointError, match="SRVGGNetCompact made infinities or NaN in float16; load the model in"
    ):
        enlarge(picture(), half)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("conv_hr.bias"), r"a file without conv_hr\.bias"),
        (lambda tensors: tensors.update(attention=torch.ones(1)), r"1 more: attention"),
        (
            lambda tensors: tensors.update({"conv_hr.weight": torch.ones(8, 8, 1, 1)}),
            r"conv_hr.weight of shape \(8, 8, 3",
        ),
        (lambda tensors: tensors.update({"conv_first.weight": torch.ones(8, 1, 3, 3)}), "one that takes 1 channels"),
        (lambda tensors: tensors.update({"conv_first.weight": torch.ones(8, 27, 3, 3)}), "one that takes 27 channels"),
        (lambda tensors: tensors.update({"body.7.rdb1.conv1.bias": torch.ones(4)}), "a file without body.1.rdb1"),
        (lambda tensors: tensors.pop("conv_first.weight"), "14 tensors|tensors of something else"),
        (lambda tensors: (tensors.clear(), tensors.update({"lora_unet_x": torch.ones(1)})), "a LoRA; load it with the"),
        (
            lambda tensors: (tensors.clear(), tensors.update({"layers.0.residual_group.x": torch.ones(1)})),
            "a transformer such as SwinIR",
        ),
    ],
)
def test_another_architecture_is_refused(change, message, tmp_path):
    tensors = newest(rrdbnet())
    change(tensors)
    path = saved(tensors, tmp_path)
    for read in (scale, lambda path: network(path, torch.float32, "cpu")):
        with pytest.raises(LoadError, match=message) as refused:
            read(path)
        assert "model.safetensors: expected " in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"body.0.weight": torch.ones(8, 4, 3, 3)}, "an SRVGGNetCompact from 4 channels to 48"),
        ({"body.6.weight": torch.ones(30, 8, 3, 3)}, "an SRVGGNetCompact from 3 channels to 30"),
    ],
)
def test_a_compact_one_of_other_channels_is_refused(change, message, tmp_path):
    with pytest.raises(LoadError, match=message):
        scale(saved(newest(compact()) | change, tmp_path))


def test_a_pickle_is_refused_with_the_line_that_converts_it(tmp_path):
    ours = rrdbnet()
    torch.save({"params_ema": newest(ours)}, tmp_path / "model.pth")
    with pytest.raises(LoadError, match="a pickle, which can run code") as refused:
        scale(tmp_path / "model.pth")
    call = str(refused.value).partition("convert it once: ")[2]
    exec(call.replace("'model", f"'{tmp_path}/model"), {"torch": torch, "safetensors": __import__("safetensors.torch")})
    made = network(tmp_path / "model.safetensors", torch.float32, "cpu")
    assert torch.equal(enlarge(picture(), made), enlarge(picture(), ours))


def test_a_truncated_file_is_refused(tmp_path):
    path = saved(newest(rrdbnet()), tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LoadError, match="a damaged one"):
        scale(path)
