import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmr_flwr.core.layout import Layout
from fedmr_flwr.core.units import format_unit, module_of, units
from fedmr_flwr.errors import ConfigError

KEYS = [
    "stem.conv.weight",
    "stem.bn.weight",
    "stem.bn.count",
    "stage.0.conv.weight",
    "stage.0.conv.bias",
    "stage.1.conv.weight",
    "stage.1.conv.bias",
    "head.weight",
    "scale",
]
ARRAYS = {
    name: np.zeros((), np.int64) if name.endswith("count") else np.zeros(size, np.float32)
    for size, name in enumerate(KEYS, 1)
}
LAYOUT = Layout.of(ARRAYS)
SPECS = ["tensor", "layer", "block", "block:2", "fraction:0.3", "fraction:1", ["stage", "bn|scale", "."]]


def keys_of(spec, layout=LAYOUT):
    return {unit.name: list(unit.keys) for unit in units(layout, spec)}


def test_tensor_and_layer_units():
    assert keys_of("tensor") == {key: [key] for key in KEYS}
    layers = keys_of("layer")
    assert layers["stem.bn"] == ["stem.bn.weight", "stem.bn.count"]
    assert layers["stage.0.conv"] == ["stage.0.conv.weight", "stage.0.conv.bias"]
    assert layers["(model)"] == ["scale"], "a key without a module belongs to the model itself"


def test_block_units_by_depth():
    assert list(keys_of("block")) == list(keys_of("block:1")) == ["stem", "stage", "head", "(model)"]
    assert list(keys_of("block:2")) == ["stem.conv", "stem.bn", "stage.0", "stage.1", "head", "(model)"]
    assert keys_of("block:9") == keys_of("layer")


def test_block_units_named_by_the_model():
    named = Layout.of(ARRAYS, blocks=("stage.0", "stage.1"))
    assert list(keys_of("block", named)) == ["stem.conv", "stem.bn", "stage.0", "stage.1", "head", "(model)"]
    assert keys_of("block", named)["stage.1"] == ["stage.1.conv.weight", "stage.1.conv.bias"]
    nested = Layout.of(ARRAYS, blocks=("stage", "stage.1"))
    assert keys_of("block", nested)["stage"] == ["stage.0.conv.weight", "stage.0.conv.bias"], "the innermost counts"
    other = Layout.of(ARRAYS, blocks=("st",))
    assert "st" not in keys_of("block", other), "a block is a whole name, not the start of one"


def sizes_of(spec, keys):
    layout = Layout.of({f"k{n}": np.zeros(1, np.float32) for n in range(keys)})
    return [len(unit.keys) for unit in units(layout, spec)]


@pytest.mark.parametrize(
    ("keys", "share", "sizes"),
    [
        (10, "0.25", [3, 2, 3, 2]),
        (119, "0.5", [60, 59]),
        (119, "0.1", [12] * 9 + [11]),
        (10, "0.3", [3, 3, 3, 1]),
        (70, "0.1", [7] * 10),  # in binary, 70 * 0.1 is more than 7
        (9, "1/3", [3, 3, 3]),
        (5, "0", [1] * 5),
        (5, "0.01", [1] * 5),
        (5, "1", [5]),
    ],
)
def test_fraction_cuts_as_published(keys, share, sizes):
    # Key i begins a unit if i >= n * share * (units begun so far).
    assert sizes_of(f"fraction:{share}", keys) == sizes


def test_fraction_keeps_the_order_of_keys():
    assert [key for keys in keys_of("fraction:0.3").values() for key in keys] == KEYS


def test_patterns_apply_in_order():
    assert keys_of(["stage", r"conv|bn\.", "."]) == {
        "stage": [key for key in KEYS if key.startswith("stage")],
        r"conv|bn\.": ["stem.conv.weight", "stem.bn.weight", "stem.bn.count"],
        ".": ["head.weight", "scale"],
    }


@pytest.mark.parametrize("spec", SPECS, ids=format_unit)
def test_units_cover_all_columns(spec):
    found = units(LAYOUT, spec)
    for width, parts in (
        (LAYOUT.size, [part for unit in found for part in unit.floats]),
        (LAYOUT.counters, [part for unit in found for part in unit.ints]),
    ):
        columns = [column for part in parts for column in range(part.start, part.stop)]
        assert sorted(columns) == list(range(width))
    assert sum(unit.size for unit in found) == LAYOUT.size


@given(st.lists(st.sampled_from(KEYS), min_size=1, unique=True), st.floats(0.01, 1))
def test_no_key_is_lost_or_doubled(keys, share):
    layout = Layout.of({key: ARRAYS[key] for key in keys})
    for spec in ("tensor", "layer", "block", "block:3", f"fraction:{share}", [r"\.", "s"]):
        try:
            found = units(layout, spec)
        except ConfigError:
            assert not isinstance(spec, str)
            continue
        assert sorted(key for unit in found for key in unit.keys) == sorted(keys)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("blocks", "unknown unit 'blocks'; choose one of tensor, layer, block"),
        ("layer:2", "unknown unit 'layer:2'"),
        ("block:0", "unknown unit 'block:0'"),
        ("block:x", "unknown unit 'block:x'"),
        ("fraction", "unknown unit 'fraction'"),
        ("fraction:-0.1", "from 0 to 1"),
        ("fraction:1/0", "from 0 to 1"),
        ("fraction:1.5", "from 0 to 1"),
        ("fraction:nan", "from 0 to 1"),
        ("fraction:x", "from 0 to 1"),
        ([], "the list of patterns is empty"),
        (["("], r"'\(' is not a regular expression"),
        (["stage"], "no pattern matches 'stem.conv.weight'; add one"),
        ([".", "stage"], "the pattern 'stage' matches no remaining key"),
    ],
)
def test_wrong_units_are_refused(spec, reason):
    with pytest.raises(ConfigError, match=reason):
        units(LAYOUT, spec)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("spec", ["tensor", "layer", "block", "block:2"])
def test_wrappers_do_not_hide_units(prefix, spec):
    wrapped = Layout.of({prefix + name: array for name, array in ARRAYS.items()})
    expected = {name: [prefix + key for key in keys] for name, keys in keys_of(spec).items()}
    assert keys_of(spec, wrapped) == expected
    assert len(expected) > 1


def test_declared_blocks_and_patterns_name_whole_paths():
    names = ["module.fc.weight", "module.fc.bias", "module.out.weight"]
    layout = Layout.of({name: np.zeros(1, np.float32) for name in names}, blocks=["module.fc"])
    assert keys_of("block", layout) == {"fc": names[:2], "out": names[2:]}
    assert keys_of([r"^module\.fc\.", "."], layout) == {r"^module\.fc\.": names[:2], ".": names[2:]}


def test_model_without_tensors_has_no_units():
    assert units(Layout.of({}), "tensor") == ()


def test_module_named_model_is_not_the_model_itself():
    layout = Layout.of({"scale": np.zeros(1, np.float32), "model.weight": np.zeros(2, np.float32)})
    assert keys_of("layer", layout) == {"(model)": ["scale"], "model": ["model.weight"]}


def test_module_of():
    assert module_of("a.b.weight") == "a.b"
    assert module_of("weight") == "(model)"
    assert module_of("Dense_0/kernel") == "Dense_0"


def layout_of(**shapes):
    """A layout of float32 arrays by name and shape."""
    return Layout.of({name.lstrip("_"): np.zeros(shape, np.float32) for name, shape in shapes.items()})


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        # PyTorch's, and Keras's with its kernels the other way round.
        ([(5, 4), (5,), (3, 5), (3,)], ["0 1", "2 3"]),
        ([(4, 5), (5,), (5, 3), (3,)], ["0 1", "2 3"]),
        # Convolutions, and what follows them that is not their bias.
        ([(8, 1, 3, 3), (8,), (8,), (8,), (2, 8)], ["0 1", "2", "3", "4"]),
        ([(5, 4), (7,), ()], ["0", "1", "2"]),
        ([(4,), (4, 4)], ["0", "1"]),
        ([(1, 3), (1,)], ["0 1"]),
        ([(0, 4), (0,), (3, 3)], ["0 1", "2"]),
    ],
)
def test_unnamed_arrays_are_units_with_their_bias(shapes, expected):
    found = units(layout_of(**{f"_{at}": shape for at, shape in enumerate(shapes)}), "layer")
    assert [" ".join(unit.keys) for unit in found] == expected


def test_integers_are_no_bias():
    layout = Layout.of({"0": np.zeros((2, 3), np.float32), "1": np.zeros(3, np.int64)})
    assert [unit.keys for unit in units(layout, "layer")] == [("0",), ("1",)]


def test_names_without_modules_are_units_as_well():
    assert keys_of("layer", layout_of(w1=(2, 3), b1=(3,), w2=(3, 1), b2=(1,))) == {
        "w1 to b1": ["w1", "b1"],
        "w2 to b2": ["w2", "b2"],
    }


def test_modules_may_be_separated_by_slashes():
    layout = layout_of(**{"params/a/bias": (3,), "params/a/kernel": (2, 3), "params/b/kernel": (3, 3)})
    assert [*keys_of("layer", layout)] == ["params/a", "params/b"]
    assert [*keys_of("block:1", layout)] == ["params"]


def test_parametrised_weight_stays_with_its_layer():
    names = [
        "fc.bias", "fc.parametrizations.weight.original0", "fc.parametrizations.weight.original1", "out.weight",
        "parametrizations.scale.original",
    ]  # fmt: skip
    found = units(Layout.of({name: np.zeros(1, np.float32) for name in names}), "layer")
    assert {unit.name: len(unit.keys) for unit in found} == {"fc": 3, "out": 1, "(model)": 1}


@pytest.mark.parametrize(
    ("spec", "names"), [("layer", ["body.a", "body.b", "fc"]), ("block:2", ["body.a", "body.b", "fc"])]
)
def test_compiled_inner_module_does_not_hide_units(spec, names):
    keys = ["body._orig_mod.a.weight", "body._orig_mod.a.bias", "body._orig_mod.b.weight", "fc.weight"]
    found = units(Layout.of({name: np.zeros(1, np.float32) for name in keys}), spec)
    assert [unit.name for unit in found] == names
