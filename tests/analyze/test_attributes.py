from pathlib import Path

import numpy as np
import pytest
import torch
from tests.small import gaussians

from limbeck.analyze.attributes import SCORES, aspect, attribute, brightness, dominance, ink, read_column, symmetry, usual
from limbeck.analyze.subject import NotApplicable
from limbeck.data.planted import PlantedTable
from limbeck.data.tables import ArrayTable
from limbeck.errors import DataError, OptionError


def bars(height: int, width: int, value: float = 1.0) -> torch.Tensor:
    image = torch.zeros(1, 1, 12, 12)
    image[:, :, 6 - height // 2 : 6 + height // 2, 6 - width // 2 : 6 + width // 2] = value
    return image


def test_scores_are_what_they_say() -> None:
    tall, wide = bars(8, 2), bars(2, 8)
    assert float(brightness(tall)) == pytest.approx(16 / 144)
    assert float(ink(tall)) == pytest.approx(16 / 144)
    assert float(ink(1 - tall)) == pytest.approx(16 / 144)  # dark on white
    assert float(aspect(tall)) == pytest.approx(1 / float(aspect(wide)))
    assert float(aspect(tall)) == pytest.approx(np.std(np.arange(8)) / np.std(np.arange(2)))
    assert float(aspect(torch.zeros(1, 1, 4, 4))) == 1
    left = torch.zeros(1, 1, 4, 4)
    left[..., 0] = 1
    assert float(symmetry(tall)) == 0
    assert float(symmetry(left)) == -0.5
    red = torch.tensor([0.9, 0.2, 0.4]).view(1, 3, 1, 1)
    assert float(dominance(0, red)) == pytest.approx(0.6)
    assert float(dominance(1, red)) < 0
    assert float(dominance(0, tall)) == 0


def test_above_the_median_of_the_own_class_says_nothing_about_the_class() -> None:
    table = gaussians(40, classes=3)
    for name in usual(table):
        values = attribute(name, table, np.arange(120))
        for number in range(3):
            assert values[table.labels == number].mean() == pytest.approx(0.5, abs=0.15)
    assert "red" not in usual(table)
    color = ArrayTable(table.images.repeat(1, 3, 1, 1), table.labels, table.classes)
    assert set(usual(color)) == set(SCORES)
    assert attribute("red", color, np.arange(120)).sum() == 0  # gray images in three channels


def test_planted_records_are_an_attribute() -> None:
    table = PlantedTable(gaussians(40), "invert", 0.3)
    assert usual(table)[-1] == "planted"
    assert (attribute("planted", table, np.arange(80)) == table.planted).all()
    with pytest.raises(
        NotApplicable, match=r"^the attribute planted needs a source in which something was planted; use a source planted:invert:SOURCE$"
    ):
        attribute("planted", gaussians(3), np.arange(6))


def test_a_column_of_a_file_by_row_of_the_test_table(tmp_path: Path) -> None:
    file = tmp_path / "yellow.csv"
    file.write_text("index,yellow,other\n3,1,0\n0,no,\n7,TRUE,1\n5,,1\n")
    assert read_column(file, "yellow") == {3: 1.0, 0: 0.0, 7: 1.0}
    found = attribute(f"csv:{file}:yellow", gaussians(2), np.array([0, 3, 5, 7]), 8)
    assert found[[0, 1, 3]].tolist() == [0, 1, 1]
    assert np.isnan(found[2])


def test_rows_beyond_the_test_table_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("index,yellow\n0,1\n99,1\n")
    with pytest.raises(DataError, match="names row 99, and the test table has 8 rows"):
        attribute(f"csv:{file}:yellow", gaussians(2), np.arange(2), 8)


def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path: Path) -> None:
    file, table = tmp_path / "a.csv", gaussians(1)
    file.write_text("row,yellow\n3,1\n")
    with pytest.raises(DataError, match=r"needs the columns 'index' and 'yellow', got 'row', 'yellow'; add them$"):
        attribute(f"csv:{file}:yellow", table, np.arange(2))
    file.write_text("index,yellow\n3,maybe\n")
    with pytest.raises(DataError, match=r"^line 2 of .* needs a row number and 0 or 1, got '3' and 'maybe'; mend it$"):
        attribute(f"csv:{file}:yellow", table, np.arange(2))
    with pytest.raises(DataError, match=r"^cannot read attributes from .*missing.csv"):
        attribute(f"csv:{tmp_path / 'missing.csv'}:yellow", table, np.arange(2))
    with pytest.raises(OptionError, match=r"^an attribute from a file is written csv:PATH:COLUMN, got 'csv:yellow'; name the column$"):
        attribute("csv:yellow", table, np.arange(2))
    with pytest.raises(OptionError, match=r"^unknown attribute 'brightnes', and it is no csv:PATH:COLUMN; did you mean 'brightness'\?"):
        attribute("brightnes", table, np.arange(2))
