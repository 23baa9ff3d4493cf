"""The gallery shows every saved graph."""

import PIL.Image
import pytest

from calotype import gallery
from calotype.front import Engine


def test_every_saved_graph_is_shown():
    assert gallery.missing() == []


def test_the_page_is_that_of_these_graphs():
    assert gallery.PAGE.read_text(encoding="utf-8") == gallery.page(), "stale: run `make gallery`"


@pytest.mark.parametrize("exhibit", gallery.EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_every_exhibit_has_its_picture(exhibit):
    with PIL.Image.open(gallery.PICTURES / f"{exhibit.name}.png") as picture:
        assert min(picture.size) >= 128
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_an_exhibit_hangs_its_pictures_side_by_side():
    exhibit = gallery.Exhibit("img2img", {"fitted": "before", "image": "after"}, {"steps": 2})
    with Engine(device="cpu") as engine:
        picture = gallery.hung(engine, exhibit)
    assert picture.width > 2 * 128
    assert picture.height > 128
    assert exhibit.command == "calotype run img2img --set steps=2"
