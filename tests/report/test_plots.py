from collections import defaultdict

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.colors import to_hex
from matplotlib.image import imread

from fedmr_flwr.config.loading import parse
from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.report import figures as report_figures
from fedmr_flwr.report import lineage, plots
from fedmr_flwr.server.experiment import create_folder


@pytest.fixture
def figures(monkeypatch):
    """Return the figures that were to be saved, by file name; to write them takes longest."""
    found = {}
    monkeypatch.setattr(report_figures, "write", lambda figure, path: found.update({path.name: figure}))
    return found


@pytest.fixture
def drawn(monkeypatch):
    """Return the figures that were saved, by file name."""
    figures = {}
    write = report_figures.write

    def look(figure, path):
        write(figure, path)
        figures[path.name] = figure

    monkeypatch.setattr(report_figures, "write", look)
    return figures


def lines(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def texts(axes):
    found = defaultdict(list)
    for text in axes.texts:
        found[text.get_text()].append(text.get_position())
    return found


def heights(band):
    """The lowest and highest value of a filled band, by round."""
    found = defaultdict(set)
    for x, y in band.get_paths()[0].vertices:
        found[x].add(y)
    return {x: (min(ys), max(ys)) for x, ys in found.items()}


def names(legend):
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.slow
@pytest.mark.parametrize(("clients", "classes"), [(3, 2), (100, 10), (1000, 62)])
def test_draws_few_and_many_clients(tmp_path, clients, classes):
    counts = np.random.default_rng(0).integers(0, 50, (clients, classes))
    plots.clients(counts, "a title", tmp_path / "clients.png")
    height, width, _ = imread(tmp_path / "clients.png").shape
    assert height >= 400
    assert width >= 900
    assert clients < 100 or width > 1500


SCORED = [{"round": 1, "train-loss": 2.0}, {"round": 2, "train-loss": 1.0, "test-accuracy": 0.25, "test-loss": 1.5}]


def test_curves_show_accuracy_and_loss(tmp_path, drawn):
    plots.curves(SCORED, "a title", tmp_path / "curves.png")
    left, right = drawn["curves.png"].axes
    assert (left.get_xlabel(), left.get_ylabel()) == ("round", "test accuracy (%)")
    assert (right.get_xlabel(), right.get_ylabel()) == ("round", "cross-entropy")
    assert list(lines(left).values()) == [([2], [25.0])]
    assert list(lines(right).values()) == [([2], [1.5]), ([1, 2], [2.0, 1.0])]
    assert not left.collections
    assert left.get_legend() is None
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_curves_name_the_validation_set(tmp_path, drawn):
    plots.curves([{"round": 1, "validation-accuracy": 0.5, "validation-loss": 1.0}], "x", tmp_path / "curves.png")
    left, right = drawn["curves.png"].axes
    assert left.get_ylabel() == "validation accuracy (%)"
    assert "validation" in lines(right)


def test_curves_show_the_slot_range(tmp_path, figures):
    rows = [
        {"round": 2, "test-accuracy": 0.5, "test-loss": 1.5, "slot-accuracies": [0.25, 0.125, 0.375]},
        {"round": 4, "test-accuracy": 0.75, "test-loss": 1.0},
        {"round": 6, "test-accuracy": 0.75, "test-loss": 1.0, "slot-accuracies": [0.75, 0.5, 0.625]},
    ]
    plots.curves(rows, "a title", tmp_path / "curves.png")
    left = figures["curves.png"].axes[0]
    assert heights(left.collections[0]) == {2: (12.5, 37.5), 6: (50, 75)}
    assert names(left.get_legend()) == ["global model", "slots, lowest to highest"]


def diverse(spreads):
    return [
        {"round": at, "similarity": 1 / at, "spread": spread} if spread else {"round": at, "bad": True}
        for at, spread in enumerate(spreads, start=1)
    ]


def test_diversity_shows_every_unit(tmp_path, figures):
    plots.diversity(diverse([[0.5, 0.25], None, [0.75, 0.5]]), ["conv", "out"], "a title", tmp_path / "diversity.png")
    figure = figures["diversity.png"]
    left, right = figure.axes
    assert list(lines(left).values()) == [([1, 3], [1, 1 / 3])]
    assert lines(right) == {"conv": ([1, 3], [0.5, 0.75]), "out": ([1, 3], [0.25, 0.5])}
    assert names(figure.legends[0]) == ["conv", "out"]
    assert figure.get_suptitle() == "How different the models of the population are, by round\na title"
    assert "similarity" in left.get_ylabel()
    assert "standard deviation" in right.get_ylabel()


@pytest.mark.parametrize(
    ("spreads", "scale"),
    [
        ([[1, 19], [1, 2]], "linear"),
        ([[1, 2], [2, 21]], "log"),
        ([[0, 1], [0, 19]], "linear"),
        ([[0, 1], [0, 21]], "symlog"),
        ([[0, 0], [0, 0]], "linear"),
    ],
)
def test_spread_scale_fits_the_values(tmp_path, figures, spreads, scale):
    plots.diversity(diverse(spreads), ["conv", "out"], "", tmp_path / "diversity.png")
    right = figures["diversity.png"].axes[1]
    assert right.get_yscale() == scale
    low, high = right.get_ylim()
    values = np.array([y for _, y in lines(right).values()])
    assert low <= values.min() <= values.max() <= high
    (_, bottom), (_, top) = right.transAxes.transform([(0, 0), (1, 1)])
    shown = right.transData.transform([(1, value) for value in values.ravel()])[:, 1]
    assert (shown >= bottom).all() and (shown <= top).all()


def test_of_many_units_the_extremes_have_a_colour(tmp_path, figures):
    units = [f"unit{at}" for at in range(97)]
    spreads = np.random.default_rng(0).permutation(97) + 1.0
    plots.diversity(diverse([spreads[::-1].tolist(), spreads.tolist()]), units, "", tmp_path / "diversity.png")
    figure = figures["diversity.png"]
    expected = [f"unit{at}" for at in [*np.argsort(spreads)[:-4:-1], *np.argsort(spreads)[2::-1]]]
    assert names(figure.legends[0]) == expected, "by the last round, largest first"
    drawn = figure.axes[1].get_lines()
    assert len(drawn) == 97
    coloured = [line for line in drawn if line.get_color() != report_figures.GREY]
    assert len({line.get_color() for line in coloured}) == 6


def test_special_characters_are_shown(tmp_path, drawn, monkeypatch):
    units, title = ["_stem", r"\.bias$|\.gain$"], r"unit [_stem, \.bias$|\.gain$]"
    plots.clients(np.ones((2, 2), int), title, tmp_path / "clients.png")
    plots.diversity(diverse([[1, 2]]), units, title, tmp_path / "diversity.png")
    plots.lineage(history(monkeypatch), units, title, tmp_path / "lineage.png")
    shown = [" _stem", r"\.bias\$|\.gain\$"]  # an escaped dollar is drawn as a dollar
    for picture in ("diversity.png", "lineage.png"):
        assert names(drawn[picture].legends[0]) == shown
        assert drawn[picture].get_suptitle().endswith("\n" + r"unit [_stem, \.bias\$|\.gain\$]")


ROWS = [  # three slots, four clients
    {"round": 1, "slots": [0, 1, 2], "clients": [0, 1, 2]},
    {"round": 2, "slots": [0, 1, 2], "clients": [3, 1, 0]},
    {"round": 3, "bad": True, "clients": [1, 2, 3]},
    {
        "round": 4,
        "slots": [0, 1, 2],
        "clients": [2, 3, 1],
        "failed": [{"client": 3, "kind": "expired", "reason": ""}],
    },
    {"round": 5, "slots": [0, 2], "clients": [3, 0]},
]


def history(monkeypatch, deals=(), keep=15):
    deals = {2: [[2, 0, 1], [0, 2, 1]], 4: [[1, 2, 0], [1, 0, 2]], 5: [[1, 2, 0], [2, 1, 0]], **dict(deals)}
    monkeypatch.setattr(
        lineage, "sources", lambda seed, at, stage, *sizes: None if deals[at] is None else np.array(deals[at])
    )
    return lineage.history(ROWS, lineage.RunSpec("fedmr", 0, 0, units=2, slots=3, clients=4), keep)


def slots_of(axes):
    """The drawn slot by round for every unit: the lines lie beside each other within a slot."""
    return {
        label: dict(zip(x, np.round(y).astype(int).tolist(), strict=True))
        for label, (x, y) in lines(axes).items()
        if not label.startswith("_")
    }


def test_lineage_traces_the_units_of_slot_0(tmp_path, figures, monkeypatch):
    plots.lineage(history(monkeypatch), ["conv", "out"], "a title", tmp_path / "lineage.png")
    figure = figures["lineage.png"]
    left = figure.axes[0]
    # conv, back from round 5: slot 0 from 1 (round 4), from 2 (round 2), from 1 (round 1).
    assert slots_of(left) == {"conv": {1: 1, 2: 2, 4: 1, 5: 0}, "out": {1: 1, 2: 2, 4: 2, 5: 0}}
    assert (left.get_xlabel(), left.get_ylabel()) == ("round", "slot")
    assert figure.get_suptitle() == "Whose data the layers of a model have passed through\na title"
    assert names(figure.legends[0]) == ["conv", "out"]
    faces = [[to_hex(face) for face in marks.get_facecolors()] for marks in left.collections]
    colours = [line.get_color() for line in left.get_lines()[:2]]
    assert faces == [[colours[0], colours[0], "#ffffff", colours[0]], [colours[1]] * 4], "the client failed: hollow"
    notes = texts(left)
    at = {(round(x), round(y)) for x, y in notes["1"]}
    assert at == {(1, 1), (4, 2)}, "client 1 trained these two"
    assert {(round(x), round(y)) for x, y in notes["0"]} == {(2, 2)}
    assert {(round(x), round(y)) for x, y in notes["3"]} == {(5, 0)}
    assert [round(x) for x, _ in notes["bad round: nothing changed"]] == [3]
    assert "the initial model" in notes


def test_lineage_counts_clients(tmp_path, figures, monkeypatch):
    past = history(monkeypatch)
    plots.lineage(past, ["conv", "out"], "", tmp_path / "lineage.png")
    right = figures["lineage.png"].axes[1]
    shown = lines(right)
    for counts, name, band in (
        (past.by_unit, "one unit of a slot's model", right.collections[0]),
        (past.by_model, "any unit of a slot's model", right.collections[1]),
    ):
        assert shown[name] == ([1, 2, 4, 5], counts[:, 1].tolist())
        low_high = heights(band)
        for number, (low, _, high) in zip([1, 2, 4, 5], counts, strict=True):
            assert low_high[number] == (low, high)
    assert right.get_ylabel() == "distinct clients, of 4"
    assert right.get_ylim() == (0, pytest.approx(4.2))


@pytest.mark.parametrize("keep", [15, 2])
def test_trace_ends_at_the_mean(tmp_path, figures, monkeypatch, keep):
    plots.lineage(history(monkeypatch, deals={4: None}, keep=keep), ["conv", "out"], "", tmp_path / "lineage.png")
    left = figures["lineage.png"].axes[0]
    assert slots_of(left) == {"conv": {4: 1, 5: 0}, "out": {4: 2, 5: 0}}
    notes = texts(left)
    assert "the mean of all slots" in notes
    assert "the initial model" not in notes
    assert "bad round: nothing changed" not in notes, "it was before the mean"


@pytest.mark.parametrize(("keep", "first"), [(2, 4), (3, 2)])
def test_only_latest_rounds_are_traced(tmp_path, figures, monkeypatch, keep, first):
    plots.lineage(history(monkeypatch, keep=keep), ["conv", "out"], "", tmp_path / "lineage.png")
    left, right = figures["lineage.png"].axes
    assert min(slots_of(left)["conv"]) == first
    assert not {"the initial model", "the mean of all slots"} & set(texts(left)), "where they begin is out of sight"
    assert min(lines(right)["one unit of a slot's model"][0]) == 1


def rows_of(slots, rounds):
    return [{"round": at, "slots": list(range(slots)), "clients": list(range(slots))} for at in range(1, rounds + 1)]


@pytest.mark.parametrize(("units", "slots", "rounds"), [(1, 1, 1), (97, 10, 40), (11, 100, 3)])
def test_lineage_of_any_size(tmp_path, drawn, units, slots, rounds):
    past = lineage.history(rows_of(slots, rounds), lineage.RunSpec("fedmr", 0, 0, units, slots, slots))
    plots.lineage(past, [f"unit{at}" for at in range(units)], "", tmp_path / "lineage.png")
    left = drawn["lineage.png"].axes[0]
    followed = list(slots_of(left))
    assert len(followed) == min(units, 6)
    assert (followed[0], followed[-1]) == ("unit0", f"unit{units - 1}")
    paths = lineage.trace(past.steps, units)
    for name, path in slots_of(left).items():
        assert list(path.values()) == paths[:, int(name.removeprefix("unit"))].tolist()
    numbers = [text for text in left.texts if text.get_text().isdigit()]
    assert bool(numbers) == (slots <= 20)
    height, width, _ = imread(tmp_path / "lineage.png").shape
    assert width == 1680
    assert 600 <= height <= 1080


@pytest.fixture
def run_of(tmp_path):
    """Return a function that makes the folder of a run with three slots out of five clients."""

    def make(rows, name="fedmr", title="what was run", **options):
        values = {"clients": 5, "clients-per-round": 2, "seed": 4, "strategy": {"name": name, **options}}
        values |= {"run-dir": str(tmp_path / "run")}
        if name == "another":  # one that this project does not know
            values |= {"strategy": {"name": "fedavg"}}
        folder = create_folder(parse(values, "test"))
        manifest = {"strategy": {"name": name, **options}, "units": ["conv", "out"]}
        folder.note(**manifest, **({"title": title} if title else {}))
        for each in rows:
            folder.add_row(each)
        return folder

    return make


FULL = [
    {"round": at, "slots": [0, at % 2 + 1], "clients": [at, 0], "train-loss": 1.0, "similarity": 0.5}
    | {"spread": [0.1, 0.2], "test-loss": 1.0, "test-accuracy": 0.5}
    for at in (1, 2, 3, 4)
]


@pytest.mark.slow
def test_draws_a_run_folder(run_of, drawn):
    folder = run_of(FULL, **{"population": 3, "first-stage-rounds": 1})
    names = ["curves.png", "diversity.png", "lineage.png"]
    assert plots.draw(folder) == [folder.path / name for name in names]
    assert sorted(drawn) == names
    for name in names:
        assert (folder.path / name).stat().st_size > 5000
        assert drawn[name].get_suptitle().endswith("\nwhat was run")
    expected = lineage.history(FULL, lineage.RunSpec("fedmr", 4, 1, units=2, slots=3, clients=5))
    left, right = drawn["lineage.png"].axes
    assert lines(right)["one unit of a slot's model"][1] == expected.by_unit[:, 1].tolist()
    paths = lineage.trace(expected.steps, 2)
    assert list(slots_of(left)["out"].values()) == [slot for slot in paths[:, 1].tolist() if slot >= 0]


def test_default_title_is_the_strategy(run_of, figures):
    plots.draw(run_of(FULL, "indep", title=None, population=3))
    assert figures["diversity.png"].get_suptitle().endswith("\nindep")
    assert set(slots_of(figures["lineage.png"].axes[0])["conv"].values()) == {0}


BAD = {"round": 1, "bad": True, "clients": [0, 1], "failures": 2}


@pytest.mark.parametrize(
    ("rows", "name", "expected"),
    [
        ([], "fedmr", []),
        ([BAD], "fedmr", []),
        ([BAD | {"test-accuracy": 0.1, "test-loss": 2.3}], "fedmr", ["curves"]),
        ([{"round": 1, "train-loss": 2.0, "clients": [0, 1]}], "fedavg", ["curves"]),
        ([each for each in FULL if each["round"] > 2], "fedmr", ["curves", "diversity", "lineage"]),
        (
            FULL,
            "another",
            ["curves", "diversity"],
        ),
    ],
)
def test_impossible_pictures_are_left_out(run_of, figures, rows, name, expected):
    folder = run_of(rows, name, **({} if name in ("fedavg", "another") else {"population": 3}))
    assert [path.stem for path in plots.draw(folder)] == expected
    assert sorted(figures) == [f"{stem}.png" for stem in expected]


def test_curves_without_evaluation(run_of, figures):
    plots.draw(run_of([{"round": 1, "train-loss": 2.0}], "fedavg"))
    left, right = figures["curves.png"].axes
    assert "not evaluated yet" in texts(left)
    assert lines(right)["training, mean over the round's clients"] == ([1], [2.0])


@pytest.mark.slow
@pytest.mark.parametrize(("form", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_formats_repeat_byte_for_byte(tmp_path, form, begins):
    contents = []
    for name in "ab":
        plots.curves(SCORED, "a title", tmp_path / f"{name}.{form}")
        contents.append((tmp_path / f"{name}.{form}").read_bytes())
    assert contents[0].startswith(begins)
    assert contents[0] == contents[1]


def test_style_of_others_is_left_alone(tmp_path):
    before = dict(rcParams)
    plots.curves(SCORED, "a title", tmp_path / "curves.svg")
    assert dict(rcParams) == before


def test_failed_write_keeps_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    path.write_bytes(b"the old one")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunFolderError, match="cannot write .*curves.png: No space left on device"):
        plots.curves([{"round": 1, "test-accuracy": 0.5, "test-loss": 1.0}], "title", path)
    assert path.read_bytes() == b"the old one"
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]
