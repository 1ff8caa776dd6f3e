"""Tables in CSV files: columns of numbers are scaled, columns of texts encoded, both by the training part alone."""

import re
import warnings
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.data.base import PARTS, Column, DatasetArrays, Facts
from fedmr_flwr.data.own import Own, listed, numbered_clients, sorted_names
from fedmr_flwr.errors import DataError
from fedmr_flwr.files import reading

if TYPE_CHECKING:  # every process of a run imports this module, and few read a table
    import pandas as pd

# A column with more different texts is a name, a date or a comment: each text would become a feature.
_MOST_TEXTS = 1000
# The names that pandas gives to columns without one.
_UNNAMED = re.compile(r"Unnamed: \d+")
_WITH_COMMAS = r"[-+]?\d[\d.]*(,\d+)+(\.\d+)?"
_REMEDY = "it must be a table of comma-separated values in UTF-8, with the names of its columns in the first line"


class Table(Own):
    """A CSV file, or a folder with train.csv and test.csv."""

    def find(self, folder: Path, download: bool) -> list[Path]:
        """Return the file, or both files."""
        path = self.path(folder)
        files = [path / f"{part}.csv" for part in PARTS] if path.is_dir() else [path]
        if self._form and not files[-1].exists():  # a node needs no test part
            files = files[:1]
        if missing := [file for file in files if not file.is_file()]:
            raise DataError(
                f"cannot read {missing[0]}: no such file; write csv:PATH, a file or a folder with train.csv and "
                "test.csv, absolute or relative to data-dir"
            )
        return files

    def has_test_part(self, files: list[Path]) -> bool:
        """Return whether there are two files."""
        return len(files) == 2

    def read(self, files: list[Path]) -> DatasetArrays:
        """Read the table, and scale and encode its columns."""
        where = str(files[0])
        read = {part: (str(file), _read(file)) for part, file in zip(PARTS, files, strict=False)}
        label = self._form.facts.label if self._form else self.label_of(read["train"][1].columns, where)
        labels = {part: _labels(table, label, name) for part, (name, table) in read.items()}
        chosen = self.divide(labels, where)
        named = {part: read.get(part, read["train"]) for part in chosen}
        tables = {part: (named[part][0], named[part][1].iloc[places]) for part, places in chosen.items()}
        client = None if self._form else self._choice.client
        facts = Facts(label=label, client=client)
        arrays: DatasetArrays = {}
        if client:
            clients = {part: _texts(table, client, name) for part, (name, table) in tables.items()}
            arrays |= numbered_clients(clients)
        if self._form:
            columns = self._form.facts.columns
        else:
            name, train = tables["train"]
            columns = tuple(_column(train, column, name) for column in train.columns if column not in (label, client))
            if not columns:
                raise DataError(
                    f"{name} has no columns besides {listed([*train.columns])}; there is nothing to learn from"
                )
            facts = Facts(label=label, client=client, columns=columns)
        parts = {part: [labels.get(part, labels["train"])[at] for at in places] for part, places in chosen.items()}
        arrays |= self.numbered(parts, where, facts)
        features = {
            name: np.concatenate([_features(table, column, name) for column in columns], axis=1)
            for name, table in read.values()
        }
        for part, places in chosen.items():
            arrays[f"x_{part}"] = features[named[part][0]][places]
        return arrays


def _read(path: Path) -> "pd.DataFrame":
    """Read a file; all values are texts or missing."""
    import pandas as pd

    with reading(path, DataError, _REMEDY), warnings.catch_warnings():
        warnings.simplefilter("error")  # lines with more values than columns
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", skipinitialspace=True, index_col=False)
        if not len(table):
            raise ValueError("it has no lines besides the first")
        # Spaces before a value are skipped above; those behind it would make another class of the same name.
        table.columns = table.columns.str.strip()
        if (twice := table.columns[table.columns.duplicated()]).size:
            raise ValueError(f"it has two columns '{twice[0]}'")
        stripped = table.apply(lambda column: column.str.strip())
        return stripped.mask(stripped == "")


def _texts(table: "pd.DataFrame", column: str, where: str) -> list[str]:
    """Return a column that may lack no value."""
    if column not in table.columns:
        raise DataError(f"{where} has no column '{column}'; its columns are {listed([*table.columns])}")
    _refuse_gaps(table[column], table[column].isna().to_numpy(), "no value", where)
    return [str(value) for value in table[column]]


def _refuse_gaps(values: "pd.Series[str]", gaps: NDArray[np.bool_], what: str, where: str) -> None:
    if gaps.any():
        row = values.index[gaps][0] + 1
        raise DataError(
            f"the column '{values.name}' of {where} has {what} in {int(gaps.sum())} rows, first in row {row}; fill "
            "them in, or leave these rows out"
        )


def _numbers(values: "pd.Series[str]") -> "pd.Series[float]":
    """Return numbers, and NaN for other texts."""
    import pandas as pd

    return pd.to_numeric(values, errors="coerce")


def _labels(table: "pd.DataFrame", label: str, where: str) -> list[str]:
    """Return the labels; numbers without their decimal places, which must be zeros."""
    texts = _texts(table, label, where)
    numbers = _numbers(table[label])
    if numbers.isna().any():
        return texts
    if (broken := numbers[numbers % 1 != 0]).size:
        raise DataError(
            f"the label '{label}' of {where} has numbers such as {broken.iloc[0]:g}; only classes can be learned, "
            "not numbers: choose another column with data.label"
        )
    return [str(int(Decimal(text))) for text in texts]  # a float would make one class of two long numbers


def _column(table: "pd.DataFrame", name: str, where: str) -> Column:
    """Return how a column becomes features, from the training part."""
    if _UNNAMED.fullmatch(name):
        raise DataError(
            f"{where} has a column without a name, such as the row numbers that pandas writes; leave it out, as by "
            "to_csv(index=False), or give it a name in the first line"
        )
    values = table[name]
    numbers = _numbers(values)
    others = values[numbers.isna() & values.notna()]
    if len(others) and others.str.fullmatch(_WITH_COMMAS).all():
        raise DataError(
            f"the column '{name}' of {where} has numbers with a comma, such as '{others.iloc[0]}'; write them "
            "without, and decimal places after a point"
        )
    # Marks such as "?" or "-" among numbers stand for missing ones.
    if not len(others) or (numbers.notna().any() and not others.str.contains(r"\w").any()):
        # Gaps are refused below, where the features are made, of the whole file.
        exact = numbers.to_numpy(np.float64)
        exact = exact[np.isfinite(exact)]
        if not len(exact):
            raise DataError(f"the column '{name}' of {where} has no numbers or texts; remove it")
        # Compared, because the deviation of equal numbers is not always 0, but may be a rounding error.
        constant = exact.min() == exact.max()
        return Column(name, float(exact.mean()), 1.0 if constant else float(exact.std()))
    categories = sorted_names({*values.fillna("")})
    if len(categories) > _MOST_TEXTS:
        raise DataError(
            f"the column '{name}' of {where} has {len(categories)} different texts, such as "
            f"{listed(categories[:1])}; at most {_MOST_TEXTS} can become features: remove it, or what is no "
            "number in it"
        )
    return Column(name, categories=categories)


def _features(table: "pd.DataFrame", column: Column, where: str) -> NDArray[np.float32]:
    """Return the features of a column, [N, 1] for numbers and [N, categories] for texts."""
    if column.name not in table.columns:
        raise DataError(f"{where} has no column '{column.name}'; its columns are {listed([*table.columns])}")
    values = table[column.name]
    if column.categories:
        texts = values.fillna("").to_numpy()
        return np.stack([texts == category for category in column.categories], axis=1).astype(np.float32)
    numbers = _numbers(values).to_numpy(np.float64)
    _refuse_gaps(values, ~np.isfinite(numbers), "no finite number", where)
    scaled: NDArray[np.float64] = (numbers[:, None] - column.mean) / column.std
    return scaled.astype(np.float32)
