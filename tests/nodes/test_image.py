import struct
import warnings
import zlib

import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from engine.errors import FileChanged
from engine.file import File, Files
from engine.socket import Int
from nodes import image as pictures
from nodes.fit import centred, contained, covering
from nodes.image import MAX_PIXELS, batch, blur, composite, crop, load, load_layer, pick
from nodes.types import Image, Mask


def resize(*arguments, **options):
    return pictures.resize(*arguments, **options).out


def noise(width, height, count=1, seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    return Image(torch.from_numpy(levels))


def levels(width, height, count=1, seed=0):
    return Mask(noise(width, height, count, seed).data[:, :1].clone())


def flat(level, width, height):
    return Image(torch.full((1, 3, height, width), level, dtype=torch.uint8))


def saved(folder, picture, name, **options):
    picture.save(folder / name, **options)
    return Files([folder]).resolve(File, name)


def written(folder, data, name):
    (folder / name).write_bytes(data)
    return Files([folder]).resolve(File, name)


def png_claiming(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def same(image, array):
    return np.array_equal(image.data[0].permute(1, 2, 0).numpy(), array)


# load


def test_a_png_comes_back_pixel_by_pixel(tmp_path):
    image = noise(7, 5)
    out, alpha = load(saved(tmp_path, image.pil(), "a.png"))
    assert torch.equal(out.data, image.data)
    assert not alpha.data.any()


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.gif"])
def test_other_formats_come_back_nearly(tmp_path, name):
    out = load(saved(tmp_path, flat(90, 16, 16).pil(), name)).out
    assert (out.data.int() - 90).abs().max() <= 3


SIDES = [
    "",
    "top left",
    "top right",
    "bottom right",
    "bottom left",
    "left top",
    "right top",
    "right bottom",
    "left bottom",
]
"""EXIF 2.3, tag 274: where row 0 and column 0 of the stored pixels belong, by orientation."""


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    image = noise(6, 4)
    upright = np.asarray(image.pil())
    rows, columns = SIDES[orientation].split()
    stored = upright if rows in ("top", "bottom") else upright.swapaxes(0, 1)
    stored = stored[::-1] if rows in ("bottom", "right") else stored
    stored = stored[:, ::-1] if columns in ("bottom", "right") else stored
    exif = PIL.Image.Exif()
    exif[274] = orientation
    file = saved(tmp_path, PIL.Image.fromarray(np.ascontiguousarray(stored)), "turned.png", exif=exif)
    assert torch.equal(load(file).out.data, image.data)


def test_transparency_is_laid_over_the_background(tmp_path):
    layer = np.zeros((1, 3, 4), np.uint8)
    layer[0, :, :3] = (200, 100, 0)
    layer[0, :, 3] = (0, 128, 255)
    out, alpha = load(saved(tmp_path, PIL.Image.fromarray(layer), "a.png"), background="#0000ff")
    expected = [[(0, 0, 255), (round(200 * 128 / 255), round(100 * 128 / 255), 127), (200, 100, 0)]]
    assert same(out, expected)
    assert alpha.data.flatten().tolist() == [255, 127, 0]


def test_a_transparent_palette_entry_is_transparent(tmp_path):
    picture = PIL.Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 210, 220])
    picture.putpixel((1, 0), 1)
    out, alpha = load(saved(tmp_path, picture, "a.png", transparency=0))
    assert same(out, [[(255, 255, 255), (200, 210, 220)]])
    assert alpha.data.flatten().tolist() == [255, 0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    out, alpha = load(saved(tmp_path, PIL.Image.new("L", (3, 2), 255).convert(mode), "a.png"))
    assert torch.equal(out.data, flat(255, 3, 2).data)
    assert not alpha.data.any()


def test_16_bit_grey_is_rounded_to_8(tmp_path):
    deep = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    out, _ = load(saved(tmp_path, PIL.Image.fromarray(deep), "deep.png"))
    assert out.data[0, 0, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert torch.equal(out.data[:, 0], out.data[:, 2])


def test_16_bit_grey_keeps_its_transparent_level(tmp_path):
    picture = PIL.Image.fromarray(np.array([[300, 301]], np.uint16))
    assert load(saved(tmp_path, picture, "deep.png", transparency=300)).alpha.data.flatten().tolist() == [255, 0]


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [flat(level, 4, 4).pil() for level in (0, 255)]
    assert not load(saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])).out.data.any()


@pytest.mark.parametrize("size", [(60000, 60000), (10000, 10000), (MAX_PIXELS // 8000 + 1, 8000)])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, size):
    with pytest.raises(ValueError, match=r"bomb\.png.*64 megapixels"):
        load(written(tmp_path, png_claiming(*size), "bomb.png"))


def test_a_bomb_is_refused_where_warnings_are_silent(tmp_path):
    file = written(tmp_path, png_claiming(10000, 10000), "bomb.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"10000 x 10000 px.*64 megapixels"):
            load(file)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.webp"])
def test_a_file_that_is_cut_short_is_refused(tmp_path, name):
    noise(64, 64).pil().save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    with pytest.raises(ValueError, match=name):
        load(written(tmp_path, data[: len(data) // 2], name))


def test_a_text_called_png_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"notes\.png is not a picture: expected PNG, JPEG, WebP or GIF"):
        load(written(tmp_path, b"a fox in the snow", "notes.png"))


def test_formats_outside_the_list_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.tif is not a picture"):
        load(saved(tmp_path, flat(0, 2, 2).pil(), "a.tif"))


def test_an_unknown_background_is_refused(tmp_path):
    with pytest.raises(ValueError, match="colourless"):
        load(saved(tmp_path, flat(0, 2, 2).pil(), "a.png"), background="colourless")


def test_a_file_that_changed_since_the_plan_is_not_loaded(tmp_path):
    file = saved(tmp_path, flat(0, 2, 2).pil(), "a.png")
    flat(1, 2, 2).pil().save(tmp_path / "a.png")
    with pytest.raises(FileChanged):
        load(file)


# layers


def test_a_layer_keeps_its_own_colours_and_its_opacity(tmp_path):
    layer = np.array([[(200, 100, 0, 0), (200, 100, 0, 128), (1, 2, 3, 255)]], np.uint8)
    out, mask = load_layer(saved(tmp_path, PIL.Image.fromarray(layer), "strokes.png"))
    assert same(out, layer[..., :3])
    assert mask.data.flatten().tolist() == [0, 128, 255]


def test_a_layer_without_transparency_covers_everything(tmp_path):
    image = noise(3, 2)
    out, mask = load_layer(saved(tmp_path, image.pil(), "photo.png"))
    assert torch.equal(out.data, image.data)
    assert mask.data.min() == 255


# resize


@pytest.mark.parametrize(
    ("size", "canvas", "cover", "contain"),
    [
        ((512, 768), (512, 512), (512, 768), (341, 512)),
        ((640, 427), (512, 512), (767, 512), (512, 341)),
        ((512, 512), (1024, 512), (1024, 1024), (512, 512)),
        ((1000, 1), (8, 8), (8000, 8), (8, 1)),
    ],
)
def test_sizes_are_those_of_a1111(size, canvas, cover, contain):
    assert covering(size, canvas) == cover
    assert contained(size, canvas) == contain


@pytest.mark.parametrize(
    ("size", "canvas", "crop_at", "fill_at"),
    [
        ((512, 768), (512, 512), (0, -128), (86, 0)),
        ((640, 427), (512, 512), (-127, 0), (0, 86)),
        ((512, 512), (1024, 512), (0, -256), (256, 0)),
        ((5, 5), (8, 5), (0, -2), (2, 0)),
        ((5, 5), (7, 4), (0, -1), (1, 0)),
    ],
)
def test_overhang_and_bands_lie_where_a1111_puts_them(size, canvas, crop_at, fill_at):
    assert centred(covering(size, canvas), canvas) == crop_at
    assert centred(contained(size, canvas), canvas) == fill_at


@pytest.mark.parametrize("name", ["lanczos", "bicubic", "bilinear", "nearest", "box"])
def test_stretch_is_pillows_resize(name):
    image = noise(12, 9)
    expected = image.pil().resize((5, 7), PIL.Image.Resampling[name.upper()])
    assert same(resize(image, 5, 7, filter=name), np.asarray(expected))


def test_crop_cuts_the_overhang_at_both_ends():
    image = noise(640, 427)
    expected = image.pil().resize((767, 512), PIL.Image.Resampling.LANCZOS).crop((127, 0, 639, 512))
    assert same(resize(image, 512, 512, mode="crop"), np.asarray(expected))


def test_fill_continues_both_edges_in_bands():
    image = noise(512, 768)
    inner = image.pil().resize((341, 512), PIL.Image.Resampling.LANCZOS)
    expected = PIL.Image.new("RGB", (512, 512))
    expected.paste(inner, (86, 0))
    expected.paste(inner.resize((86, 512), box=(0, 0, 0, 512)), (0, 0))
    expected.paste(inner.resize((86, 512), box=(341, 0, 341, 512)), (427, 0))
    assert same(resize(image, 512, 512, mode="fill"), np.asarray(expected))


def test_a_band_goes_on_an_eighth_of_the_way_the_edge_was_going():
    rows = torch.tensor([30, 50, 150, 170], dtype=torch.uint8)
    image = Image(rows.reshape(1, 1, 4, 1).expand(1, 3, 4, 4).contiguous())
    assert resize(image, 4, 8, mode="fill").data[0, 0, :, 0].tolist() == [28, 28, 30, 50, 150, 170, 173, 173]


@given(*[st.integers(1, 40)] * 4, st.sampled_from(["crop", "fill"]))
def test_no_size_leaves_a_black_line(w, h, width, height, mode):
    resized = resize(flat(255, w, h), width, height, mode=mode)
    assert resized.size == (width, height)
    assert resized.data.min() == 255


def test_sides_by_factor_are_truncated():
    assert resize(noise(513, 511), factor=0.5).size == (256, 255)
    assert resize(noise(10, 20), factor=1.99).size == (19, 39)


@pytest.mark.parametrize("asked", [{}, {"width": 8}, {"height": 8}])
def test_both_sides_or_a_factor_must_be_given(asked):
    with pytest.raises(ValueError, match="expected width and height, or factor"):
        resize(noise(4, 4), **asked)


def test_a_factor_goes_before_both_sides():
    assert resize(noise(10, 20), 8, 8, factor=0.5).size == (5, 10)
    assert resize(noise(10, 20), 8, factor=0.5).size == (5, 10)


def test_the_size_that_was_asked_for_comes_out_too():
    assert pictures.resize(noise(513, 511), factor=0.5)[1:] == (Int(256), Int(255))
    assert pictures.resize(noise(9, 9), 20, 31, mode="fill", multiple=8)[1:] == (Int(16), Int(24))
    assert pictures.resize(noise(9, 9), 20, 31, mode="latent", multiple=8)[1:] == (Int(16), Int(24))


@pytest.mark.parametrize("mode", ["stretch", "crop", "fill"])
def test_sides_are_rounded_down_to_a_multiple(mode):
    assert torch.equal(
        resize(noise(9, 9), 20, 31, mode=mode, multiple=8).data, resize(noise(9, 9), 16, 24, mode=mode).data
    )


def test_a_side_below_the_multiple_is_refused():
    with pytest.raises(ValueError, match="7 x 64 px, in whole multiples of 8 px, is 0 x 64 px: each side must be 1"):
        resize(noise(4, 4), 7, 64, multiple=8)


def test_for_the_latent_upscale_only_what_no_cell_holds_is_cut():
    image = noise(37, 18, count=2)
    assert resize(image, 64, 64, mode="latent") is image
    assert torch.equal(resize(image, 64, 64, mode="latent", multiple=8).data, image.data[..., :16, :32])


def test_a_factor_that_leaves_no_pixel_is_refused():
    with pytest.raises(ValueError, match=r"4 x 4 px times 0\.1 is 0 x 0 px"):
        resize(noise(4, 4), factor=0.1)


def test_a_cover_that_would_fill_the_memory_is_refused():
    with pytest.raises(ValueError, match="512000 x 512 px would have to be made and cropped to 512 x 512 px"):
        resize(noise(1000, 1), 512, 512, mode="crop")


def test_each_picture_of_a_batch_is_resized_as_if_alone():
    image = noise(9, 6, count=3)
    together = resize(image, 4, 8, mode="fill")
    alone = [resize(pick(image, index), 4, 8, mode="fill").data for index in range(3)]
    assert torch.equal(together.data, torch.cat(alone))


# blur


def test_blur_is_pillows():
    image = noise(40, 30)
    assert same(blur(image, 4.0), np.asarray(image.pil().filter(PIL.ImageFilter.GaussianBlur(4))))
    assert torch.equal(blur(image, 0.0).data, image.data)


# crop


def test_crop_cuts_the_box_out():
    image = noise(8, 6, count=2)
    assert torch.equal(crop(image, 2, 1, 3, 4).data, image.data[:, :, 1:5, 2:5])
    assert torch.equal(crop(image, 0, 0, 8, 6).data, image.data)


@pytest.mark.parametrize("box", [(-1, 0, 2, 2), (0, -1, 2, 2), (7, 0, 2, 2), (0, 5, 2, 2)])
def test_a_box_that_leaves_the_picture_is_refused(box):
    with pytest.raises(ValueError, match="leaves the picture of 8 x 6 px"):
        crop(noise(8, 6), *box)


# composite


PIXELS = arrays.arrays(np.uint8, (1, 3, 4, 5))


@given(PIXELS, PIXELS, arrays.arrays(np.uint8, (1, 1, 4, 5), elements=st.sampled_from([0, 1, 127, 128, 254, 255])))
def test_composite_is_exact(base, over, mask):
    out = composite(
        *(kind(torch.from_numpy(a)) for kind, a in ((Image, base), (Image, over), (Mask, mask)))
    ).data.numpy()
    share = mask.astype(int)
    assert np.array_equal(out, (2 * (share * over + (255 - share) * base) + 255) // 510)
    assert np.array_equal(np.where(mask == 0, out, base), base)
    assert np.array_equal(np.where(mask == 255, out, over), over)


def test_composite_rounds_a1111s_levels_to_the_nearest():
    shares = Mask(torch.tensor([0, 64, 128, 192, 255], dtype=torch.uint8).reshape(1, 1, 1, 5))
    assert composite(flat(200, 5, 1), flat(100, 5, 1), shares).data[0, 0, 0].tolist() == [200, 175, 150, 125, 100]


@given(st.integers(-9, 9), st.integers(-9, 9))
def test_an_offset_moves_over_and_its_mask(x, y):
    base, over, mask = noise(7, 6), noise(4, 3, seed=1), Mask(torch.full((1, 1, 3, 4), 255, dtype=torch.uint8))
    expected = base.pil()
    expected.paste(over.pil(), (x, y))
    assert same(composite(base, over, mask, x, y), np.asarray(expected))


def test_a_mask_of_the_size_of_the_base_stays_in_place():
    mask = torch.zeros(1, 1, 6, 7, dtype=torch.uint8)
    mask[..., 2:, 3:] = 255
    out = composite(flat(0, 7, 6), flat(9, 4, 3), Mask(mask), 2, 1).data[0, 0]
    expected = torch.zeros(6, 7, dtype=torch.uint8)
    expected[2:4, 3:6] = 9
    assert torch.equal(out, expected)


def test_a_mask_of_neither_size_is_refused():
    with pytest.raises(ValueError, match="the mask is 3 x 3 px: expected `over`, 4 x 4 px, or `base`, 8 x 8"):
        composite(noise(8, 8), noise(4, 4), levels(3, 3))


@pytest.mark.parametrize("counts", [(1, 1, 3), (1, 3, 1), (3, 1, 1), (3, 1, 3)])
def test_one_picture_goes_with_a_batch(counts):
    base, over, mask = noise(5, 4, counts[0]), noise(5, 4, counts[1], 1), levels(5, 4, counts[2], 2)
    together = composite(base, over, mask)

    def one(value, index):
        return type(value)(value.data[min(index, len(value.data) - 1)][None])

    alone = [composite(one(base, i), one(over, i), one(mask, i)).data for i in range(3)]
    assert torch.equal(together.data, torch.cat(alone))


def test_batches_of_different_length_are_refused():
    with pytest.raises(ValueError, match="batches of 2 and 3 do not go together"):
        composite(noise(4, 4, 2), noise(4, 4, 3), levels(4, 4))


# batch and pick


def test_batch_keeps_the_order_and_pick_takes_it_apart():
    first, second = noise(4, 4, 2), noise(4, 4, 1, seed=1)
    joined = batch((first, second))
    assert len(joined.data) == 3
    assert torch.equal(pick(joined, 1).data, first.data[1:])
    assert torch.equal(pick(joined, 2).data, second.data)


def test_batch_refuses_other_sizes_and_nothing():
    with pytest.raises(ValueError, match="one size, got 4 x 4 px, 5 x 4 px"):
        batch((noise(5, 4), noise(4, 4)))
    with pytest.raises(ValueError, match="got none; resize"):
        batch(())


def test_pick_refuses_an_index_outside_the_batch():
    with pytest.raises(ValueError, match=r"index 2 is outside the batch of 2: expected 0\.\.1"):
        pick(noise(4, 4, 2), 2)


# all of them


NODES = {
    "resize": lambda image: resize(image, 3, 9, mode="fill"),
    "resize for the latent": lambda image: resize(image, 3, 9, mode="latent", multiple=2),
    "blur": blur,
    "crop": lambda image: crop(image, 1, 1, 3, 3),
    "composite": lambda image: composite(image, image, Mask(image.data[:, :1]), 1, 1),
    "batch": lambda image: batch((image, image)),
    "pick": lambda image: pick(image, 1),
}


@pytest.mark.parametrize("name", NODES)
def test_no_node_writes_into_its_input(name):
    image = noise(6, 5, 2)
    before = image.stamp(), image.data.clone()
    NODES[name](image)
    assert image.stamp() == before[0]
    assert torch.equal(image.data, before[1])


@pytest.mark.gpu
@pytest.mark.parametrize("name", NODES)
def test_a_node_works_where_its_input_lies(name):
    image = noise(6, 5, 2)
    there = NODES[name](image.move("cuda:0"))
    assert there.place() == "cuda:0"
    assert torch.equal(there.data.cpu(), NODES[name](image).data)
