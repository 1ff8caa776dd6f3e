"""flatness.json, and what a comparison reads of it."""

import pytest

from fedmr_flwr.analysis.flatness.records import at_the_latest, read, save
from fedmr_flwr.analysis.studies.results import RunKey, collect
from fedmr_flwr.analysis.studies.tables import details, statistics
from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.runs.folder import RunFolder
from tests.support.curves import rows


@pytest.fixture
def measured(tmp_path):
    """Return a function that makes a folder in which rounds were measured."""

    def make(name, **rounds):
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        for number, value in rounds.items():
            own = {"eigenvalues": [value, 0.1], "trace": 10 * value, "sharpness": value / 100}
            save({"global": own}, int(number[1:]), folder)
        return folder

    return make


def test_rounds_add_up(measured):
    assert {number: own["global"]["trace"] for number, own in read(measured("a", r10=1.0, r30=2.0)).items()} == {
        10: 10.0,
        30: 20.0,
    }


def test_runs_are_compared_after_the_same_round(measured):
    folders = [measured("a", r10=1.0, r30=2.0, r50=3.0), measured("b", r10=4.0, r30=5.0), measured("c")]
    found = at_the_latest(folders)
    assert [own and (own["round"], own["eigenvalues"][0]) for own in found] == [(30, 2.0), (30, 5.0), None]


def test_runs_without_a_common_round_have_no_numbers(measured):
    assert at_the_latest([measured("a", r10=1.0), measured("b", r30=5.0)]) == [None, None]


def test_damaged_file_is_named(measured):
    folder = measured("a")
    (folder.path / "flatness.json").write_text("[1]")
    with pytest.raises(RunFolderError, match=r"flatness\.json.*delete it to measure again"):
        read(folder)


def test_table_has_columns_where_something_was_measured(measured):
    keys = [RunKey("", "fedmr", 0), RunKey("", "fedmr", 1), RunKey("", "fedavg", 0)]
    found = {key: rows([0.5, 0.6]) for key in keys}
    flat = at_the_latest([measured("a", r2=1.0), measured("b", r2=3.0)])
    table = statistics(collect(found, flat=dict(zip(keys, flat, strict=False))), [""], ["fedmr", "fedavg"], 2)
    text = details(table)
    assert text[["at round", "λ1", "trace", "sharpness"]].values.tolist() == [
        ["2", "2.0 ± 1.4", "20 ± 14", "0.020 ± 0.014"],
        ["–"] * 4,
    ]
    assert "λ1" not in details(statistics(collect(found), [""], ["fedmr", "fedavg"], 2))
