import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.report.gallery import MOST_IMAGES, contact_sheet, make_gallery


def decoded(uri: str) -> np.ndarray:
    head, _, body = uri.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return np.array(Image.open(io.BytesIO(base64.b64decode(body))))


def test_small_images_are_shown_pixel_by_pixel(run) -> None:
    _, dataset = run
    gallery = make_gallery(dataset)
    assert (gallery.shown, gallery.total, gallery.exact) == (100, 100, True)
    for picture in gallery.pictures:
        np.testing.assert_array_equal(decoded(picture.uri), dataset.images[picture.index, 0].numpy())
        assert picture.owner == int(dataset.owners[picture.index])
    assert gallery.width % 8 == 0


def test_bars_are_the_largest_entries_and_the_rest(make_run) -> None:
    _, dataset = make_run((1,) * 30)
    labels = dataset.targets().double()
    for picture in make_gallery(dataset).pictures:
        values = [bar.value for bar in picture.bars]
        largest = labels[picture.index].sort(descending=True).values
        np.testing.assert_allclose(values, largest[:10].numpy(), atol=5e-5)
        assert picture.rest == pytest.approx(float(largest[10:].sum()), abs=5e-5)
        short = picture.top(3)
        assert len(short.bars) == 3
        assert sum(bar.value for bar in short.bars) + short.rest == pytest.approx(1.0, abs=1e-3)


def test_more_images_than_fit_are_shown_evenly(make_run) -> None:
    _, dataset = make_run((400, 5, 0, 60))
    gallery = make_gallery(dataset)
    assert [(group.number, len(group.pictures), group.total) for group in gallery.groups] == [(0, 100, 400), (1, 5, 5), (3, 60, 60)]
    assert [picture.index for picture in gallery.groups[1].pictures] == list(range(400, 405))


def test_more_classes_than_fit(make_run) -> None:
    _, dataset = make_run((2,) * 310)
    gallery = make_gallery(dataset)
    assert gallery.shown == len(gallery.groups) == MOST_IMAGES


def test_large_images_become_thumbnails(make_run) -> None:
    _, dataset = make_run((1, 1), (3, 160, 320))
    gallery = make_gallery(dataset)
    assert not gallery.exact
    assert decoded(gallery.pictures[0].uri).shape == (64, 128, 3)
    assert (gallery.width, gallery.height) == (96, 48)


def test_logits_may_be_negative_and_have_no_rest(make_run) -> None:
    _, dataset = make_run((1,) * 12, kind="logit")
    gallery = make_gallery(dataset)
    assert gallery.unit == "logit"
    assert all(picture.rest is None and 0 <= bar.length <= 1 for picture in gallery.pictures for bar in picture.bars)
    assert any(bar.value < 0 for bar in gallery.pictures[0].bars)


def test_hard_labels_have_one_bar(make_run) -> None:
    _, dataset = make_run((1,) * 3, kind="hard")
    assert [picture.spoken for picture in make_gallery(dataset).pictures] == ["0 1.00", "1 1.00", "2 1.00"]


def test_contact_sheet_holds_every_shown_image(run) -> None:
    _, dataset = run
    sheet = np.array(contact_sheet(dataset).convert("L"))
    assert sheet.shape[0] == 10 + 10 * 60
    enlarged = np.kron(dataset.images[0, 0].numpy(), np.ones((7, 7), np.uint8))
    left = sheet.shape[1] - 6 - 10 * 60
    np.testing.assert_array_equal(sheet[7 : 7 + 56, left : left + 56], enlarged)


def test_float_images_are_shown_through_their_pixel_space(make_run) -> None:
    from dataclasses import replace

    _, dataset = make_run((1, 1))
    learned = replace(dataset, images=torch.full((2, 1, 8, 8), 0.5))
    assert decoded(make_gallery(learned).pictures[0].uri).tolist() == [[128] * 8] * 8
