"""The tables of a comparison: as text, in files, in a terminal."""

import csv
import io

import numpy as np
import pytest
from rich.console import Console

from fedmr_flwr.analysis.studies import tables, terminal
from fedmr_flwr.analysis.studies.results import RunKey, collect
from tests.support.curves import TWO, rows


def table_of(found, wanted=2, target=None, cells=("",)):
    """Return the statistics and the runs of the same results in every cell."""
    names = [*found]
    runs = collect(
        {RunKey(cell, name, seed): run for cell in cells for name in names for seed, run in enumerate(found[name])},
        target,
    )
    return tables.statistics(runs, cells, names, wanted), runs


def line(table, at):
    return tables.details(table).iloc[at].to_dict()


def test_mean_and_deviation_over_seeds():
    table, _ = table_of(TWO)
    found = line(table, 0)
    assert [found[name] for name in ("strategy", "runs", "last", "best", "last 5", "rounds to", "target")] == [
        "fedmr", "2", "75.0 ± 7.1", "85.0 ± 7.1", "69.0 ± 4.2", "4.0 ± 0.0", "50 %",
    ]  # fmt: skip
    assert found["against fedmr"] == "–"
    assert line(table, 1)["against fedmr"].startswith("−31.3 [")


def test_one_seed_has_no_deviation():
    table, _ = table_of({"fedmr": TWO["fedmr"][:1], "fedavg": []}, 1)
    found = line(table, 0)
    assert (found["last"], found["rounds to"], found["target"], found["s/round"]) == ("70.0", "10", "80 %", "3.25")
    none = line(table, 1)
    assert (none.pop("strategy"), none.pop("runs")) == ("fedavg", "0 of 1")
    assert none.pop("target") == "80 %"
    assert set(none.values()) == {"–"}


def test_no_run_has_no_numbers():
    table, _ = table_of({"fedavg": []}, 3)
    assert set(line(table, 0).values()) == {"fedavg", "0 of 3", "–"}


def test_unreached_target_has_no_mean():
    table, _ = table_of(TWO, target=0.65)
    assert line(table, 1)["rounds to"] == line(table, 1)["MB to"] == line(table, 1)["s to"] == "–"


def test_markdown_is_aligned():
    text = tables.to_markdown(tables.details(table_of(TWO)[0]))
    head, rule, *body = text.splitlines()
    assert len({len(line) for line in (head, rule, *body)}) == 1
    assert [line.count("|") for line in (head, rule, *body)] == [15] * 4
    assert set(rule) == set("|-:")
    assert "| fed_avg/mu=0.1 |" in text
    assert "| 51.0 ± 1.3 |" in text


def test_line_in_a_name_begins_no_column_of_markdown():
    table, runs = table_of({f"{name}|c": found for name, found in TWO.items()}, cells=["data.name=csv:a|b"])
    for text in (tables.details(table), tables.by_cell(table, runs)):
        lines = tables.to_markdown(text).splitlines()
        assert [line.replace(r"\|", "").count("|") for line in lines] == [len(text.columns) + 1] * len(lines)


def test_latex_is_escaped():
    text = tables.to_latex(tables.details(table_of(TWO, target=0.65)[0]))
    assert text.startswith("\\begin{tabular}{lrrrrrrrrrrrrr}\n\\toprule\nstrategy & runs & ")
    assert text.endswith("\\\\\n\\bottomrule\n\\end{tabular}\n")
    assert "65 \\%" in text
    assert "fed\\_avg/mu=0.1 & 2 & 51.0 $\\pm$ 1.3 & " in text
    assert " & -- & " in text
    assert {line.count("&") for line in text.splitlines() if line.endswith("\\\\")} == {13}


BETTER = {"a": [rows([0.5]), rows([0.6]), rows([0.7])], "b_": [rows([0.6]), rows([0.71]), rows([0.8])]}


def test_best_of_a_row_is_marked():
    table, runs = table_of(BETTER, 3, cells=("one", "two"))
    wide = tables.by_cell(table, runs)
    assert wide.iloc[1].to_dict() == {"cell": "two", "a": "60.0 ± 10.0", "b_": "**70.3 ± 10.0**"}
    latex = tables.to_latex(tables.by_cell(table, runs, mark="<b>{}</b>"))
    assert "cell & a & b\\_ \\\\" in latex
    assert "two & 60.0 $\\pm$ 10.0 & \\textbf{70.3 $\\pm$ 10.0} \\\\" in latex


def read(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_csv_has_full_precision(tmp_path):
    table, runs = table_of(TWO, target=0.65)
    tables.write(table, runs, tmp_path)
    first, second = read(tmp_path / "comparison.csv")
    assert float(first["late_mean"]) == pytest.approx(0.69)
    assert float(first["last_std"]) == pytest.approx(np.std([0.7, 0.8], ddof=1))
    assert float(first["bytes_down_mean"]) == 500
    assert (second["rounds_to_mean"], second["rounds_to_std"]) == ("", "")
    assert first["target"] == "0.65"
    each = read(tmp_path / "runs.csv")
    assert [(row["strategy"], row["seed"]) for row in each][:2] == [("fedmr", "0"), ("fedmr", "1")]
    assert each[2]["rounds_to"] == ""
    assert not (tmp_path / "cells.csv").exists(), "one cell has no rows to compare"


def test_cells_are_rows_of_a_csv(tmp_path):
    table, runs = table_of(BETTER, 3, cells=("two", "one"))
    written = tables.write(table, runs, tmp_path)
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    found = read(tmp_path / "cells.csv")
    assert [*found[0]] == ["cell", "a_mean", "a_std", "b__mean", "b__std"]
    assert [row["cell"] for row in found] == ["two", "one"]
    assert float(found[0]["b__mean"]) == pytest.approx(0.7033, abs=1e-4)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_terminal_of_any_width_shows_whole_numbers(width):
    table, _ = table_of({"fedmr": TWO["fedmr"], "fedavg/weighting=uniform": TWO["fed_avg/mu=0.1"]})
    text = tables.details(table)
    console = Console(file=io.StringIO(), width=width)
    terminal.show(text, ["strategy"], "a caption", console)
    output = console.file.getvalue()
    assert max(map(len, output.splitlines())) <= width
    for column in text.columns[1:]:
        assert column in output
        for cell in text[column]:
            assert cell in output
    assert output.count("strategy") == {60: 5, 80: 3, 120: 2, 200: 1}[width]


def test_terminal_shows_the_best_in_bold():
    table, runs = table_of(BETTER, 3, cells=("one", "two"))
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="truecolor")
    terminal.show(tables.by_cell(table, runs), ["cell"], "", console)
    assert "\x1b[1m70.3 ± 10.0" in console.file.getvalue()
    assert "*" not in console.file.getvalue()


def test_evaluations_of_clients_are_columns():
    own = {name: [[*rows([0.5, 0.6])] for _ in range(2)] for name in ("a", "b")}
    plain = tables.details(table_of(own)[0])
    assert not {"clients", "worst tenth", "fine-tuned", "macro-F1"} & set(plain.columns)
    for seed, run in enumerate(own["a"]):
        run[-1] |= {"client-accuracy": {"mean": 0.4 + 0.2 * seed, "worst-tenth": 0.25}}
    found = tables.details(table_of(own)[0])
    assert found["clients"].tolist() == ["50.0 ± 14.1", "–"]
    assert found["worst tenth"].tolist() == ["25.0 ± 0.0", "–"]
    assert "fine-tuned" not in found.columns
