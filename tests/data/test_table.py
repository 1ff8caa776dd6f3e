import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_wine

from fedmr_flwr.config.data import Data
from fedmr_flwr.config.partition import Partition
from fedmr_flwr.data import datasets, partitions
from fedmr_flwr.data.own import ExampleFormat, sorted_names
from fedmr_flwr.errors import DataError

PEOPLE = """age,town,hospital,label
20,"Ulm, old town",a,yes
30,Bern,a,no
40,Bern,b,yes
50,"the ""Bog\"\"",b,no
60,,c,yes
70,Bern,c,no
20,Ulm,a,yes
30,Bern,b,no
40,Bern,c,yes
50,Bern,c,no
"""


def load(path, seed=0, **options):
    return datasets.load(Data(name=f"csv:{path}", **options), None, seed)


@pytest.fixture
def people(tmp_path):
    (tmp_path / "people.csv").write_text(PEOPLE)
    return tmp_path / "people.csv"


def test_columns_become_features(people):
    data = load(people)
    _, town, hospital = data.facts.columns
    assert [column.name for column in data.facts.columns] == ["age", "town", "hospital"]
    assert (data.facts.label, data.facts.names, data.classes) == ("label", ("no", "yes"), 2)
    assert (len(data.train), len(data.test)) == (8, 2)
    assert data.input_shape == (1 + len(town.categories) + len(hospital.categories),)
    assert set(town.categories) <= {"", "Bern", "Ulm", "Ulm, old town", 'the "Bog"'}
    assert data.train.inputs.dtype == torch.float32


def test_scale_is_the_training_parts(people):
    train = load(people).train.inputs[:, 0].double()
    assert train.mean() == pytest.approx(0, abs=1e-6)
    assert train.std(unbiased=False) == pytest.approx(1)


def test_constant_column_is_not_scaled_up(tmp_path):
    """The computed deviation of some equal numbers is 1e-17."""
    count = next(count for count in range(2, 100) if np.full(count, 0.1).std() > 0)
    (tmp_path / "train.csv").write_text("label,x\n" + "".join(f"{at % 2},0.1\n" for at in range(count)))
    (tmp_path / "test.csv").write_text("label,x\n0,0.1\n1,1.1\n")
    data = load(tmp_path)
    assert data.train.inputs.flatten().tolist() == pytest.approx([0] * count, abs=1e-6)
    assert data.test.inputs.flatten().tolist() == pytest.approx([0, 1], abs=1e-6)


def test_hand_worked_features(tmp_path):
    (tmp_path / "train.csv").write_text("label,x,kind\n0,1,a\n1,5,b\n")
    (tmp_path / "test.csv").write_text("kind,x,label\nc,9,1\nb,3,0\n")
    data = load(tmp_path)
    assert data.train.inputs.tolist() == [[-1, 1, 0], [1, 0, 1]]
    assert data.test.inputs.tolist() == [[3, 0, 0], [0, 0, 1]], "a text that training lacks is 0 in all"


def test_clients_are_a_column(people):
    data = load(people, client="hospital")
    assert [column.name for column in data.facts.columns] == ["age", "town"]
    parts = partitions.split(data, 3, Partition(name="natural"), 0)
    assert sorted(map(len, parts)) == sorted(data.owners.bincount().tolist())
    assert int(data.test_owners.max()) <= 2


def test_names_have_one_order():
    assert sorted_names({"2", "10", "01", "1", "001", "9" * 5000}) == ("001", "01", "1", "2", "10", "9" * 5000)


def test_wine_is_learned(tmp_path):
    wine = load_wine(as_frame=True).frame
    wine.to_csv(tmp_path / "wine.csv", index=False)
    data = load(tmp_path / "wine.csv")
    assert (data.input_shape, data.classes, len(data.train), len(data.test)) == ((13,), 3, 142, 36)
    found = torch.cat([data.train.inputs, data.test.inputs])
    assert len(found.unique(dim=0)) == len(wine.drop(columns="target").drop_duplicates())


def test_labels_may_be_whole_floats(tmp_path):
    pd.DataFrame({"x": range(10), "label": [1.0, 10.0] * 5}).to_csv(tmp_path / "a.csv", index=False)
    assert load(tmp_path / "a.csv").facts.names == ("1", "10")


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (PEOPLE.replace("label", "answer"), {}, "no columns with a usual name for the labels; set data.label to one "
         "of 'age', 'town', 'hospital', 'answer'"),
        ('"two\nlines",answer\n1,2\n', {}, "set data.label to one of 'two lines', 'answer'$"),
        (PEOPLE, {"label": "lable"}, "no column 'lable' for the labels; set data.label to one of 'age', 'town'"),
        (PEOPLE, {"client": "clinic"}, "has no column 'clinic'; its columns are 'age', 'town', 'hospital', 'label'"),
        (PEOPLE.replace("\n40", "\n"), {}, r"the column 'age' of .*people.csv has no finite number in 2 rows, first "
         "in row 3"),
        (PEOPLE.replace("\n40", "\nNaN"), {}, "the column 'age' .* has no finite number in 2 rows"),
        (PEOPLE.replace("\n40", "\ninf"), {}, "the column 'age' .* has no finite number in 2 rows"),
        (PEOPLE.replace("a,yes", "a,"), {}, "the column 'label' of .* has no value in 2 rows, first in row 1"),
        (PEOPLE.replace("a,yes", "a,ja,1"), {}, "people.csv: .*it must be a table of comma-separated values"),
        (PEOPLE.replace("Bern", "Zürich").encode("latin-1"), {}, "people.csv: .*comma-separated values in UTF-8"),
        (PEOPLE.splitlines()[0], {}, "it has no lines besides the first"),
        ("", {}, "people.csv: .*it must be a table"),
        ("price,label\n1,2.5\n2,3.5\n", {}, "the label 'label' of .* has numbers such as 2.5; only classes can be"),
        ("label\na\nb\n" * 9, {}, "has no columns besides 'label'"),
        ("x,label\n" + "1,a\n" * 9, {}, "has only the label 'a'; a classification needs at least two"),
        ("x,label\n1,a\n2,b\n", {}, "2 examples are too few to keep a fifth of them for testing"),
        ("x,label\n" + "1,a\n2,b\n" * 9 + "?,a\n-,b\n", {}, "the column 'x' of .* has no finite number in 2 "
         "rows, first in row 19"),
        ("x,label\n" + '"1,005",a\n900,b\n' * 9, {}, "the column 'x' .* numbers with a comma, such as '1,005'; "),
        ("x,label\n" + '"0,5",a\n"-1,5",b\n' * 9, {}, "the column 'x' of .* has numbers with a comma, such as '"),
        (",x,label\n" + "".join(f"{at},{at},{at % 2}\n" for at in range(20)), {}, "has a column without a name, "
         "such as the row numbers that pandas writes"),
        ("x,x ,label\n" + "1,2,a\n3,4,b\n" * 9, {}, "it has two columns 'x'"),
        ("id,label\n" + "".join(f"n{at},{at % 2}\n" for at in range(2000)), {}, "has 1600 different texts, such as"),
    ],
)  # fmt: skip
def test_unfit_table_is_one_line(people, content, options, words):
    people.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words) as caught:
        load(people, **options)
    assert "\n" not in str(caught.value)


def test_spaces_around_a_value_are_none_of_it(people, tmp_path):
    (tmp_path / "spaced.csv").write_text(PEOPLE.replace(",", ", ").replace("yes", "yes  ").replace("label", "label "))
    spaced = load(tmp_path / "spaced.csv")
    assert spaced.facts.names == ("no", "yes")
    assert spaced.train.labels.equal(load(people).train.labels)


def test_marks_may_be_categories(tmp_path):
    (tmp_path / "train.csv").write_text("label,x,sign\n0,1,+\n1,5,-\n")
    (tmp_path / "test.csv").write_text("label,x,sign\n0,1,-\n")
    assert load(tmp_path).test.inputs.tolist() == [[-1, 0, 1]]


def test_long_numbers_are_different_labels(tmp_path):
    labels = ["100000000000000001", "100000000000000002.0"]
    pd.DataFrame({"x": range(10), "label": labels * 5}).to_csv(tmp_path / "a.csv", index=False)
    assert load(tmp_path / "a.csv").facts.names == ("100000000000000001", "100000000000000002")


def test_label_of_the_test_part_alone_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text("label,x\na,1\nb,5\n")
    (tmp_path / "test.csv").write_text("label,x\nc,9\n")
    with pytest.raises(DataError, match="the label 'c' occurs only in the test part of"):
        load(tmp_path)
    (tmp_path / "test.csv").write_text("label,y\na,9\n")
    with pytest.raises(DataError, match=r"test.csv has no column 'x'; its columns are 'label', 'y'"):
        load(tmp_path)
    (tmp_path / "test.csv").unlink()
    with pytest.raises(DataError, match=r"cannot read .*test.csv: no such file; write csv:PATH"):
        load(tmp_path)


def test_byte_order_mark_is_no_name(people):
    people.write_text("\ufeff" + PEOPLE)
    assert load(people).facts.columns[0].name == "age"


def test_node_encodes_as_the_server_does(people, tmp_path):
    server = load(people)
    form = ExampleFormat(server.input_shape, server.classes, server.facts)
    (tmp_path / "node.csv").write_text("label,more,hospital,town,age\nno,7,a,Paris,20\n")
    train, tests = datasets.read_examples(f"csv:{tmp_path / 'node.csv'}", Data(), form)
    age, *_ = server.facts.columns
    assert (train.labels.tolist(), tests) == ([0], None)
    expected = [(20 - age.mean) / age.std, *[0] * len(server.facts.columns[1].categories)]
    expected += [float(name == "a") for name in server.facts.columns[2].categories]
    np.testing.assert_allclose(train.inputs[0], expected, rtol=1e-6)
    (tmp_path / "node.csv").write_text("label,more,hospital,town,age\nno,7,a,Paris,old\n")
    with pytest.raises(DataError, match="the column 'age' of .*node.csv has no finite number in 1 rows, first"):
        datasets.read_examples(f"csv:{tmp_path / 'node.csv'}", Data(), form)
