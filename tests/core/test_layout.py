import numpy as np
import pytest

from fedmr_flwr.core.layout import Layout, Packed

ARRAYS = {
    "conv.weight": np.arange(4, dtype=np.float32).reshape(2, 2),
    "conv.bias": np.array([4, 5], np.float32),
    "bn.weight": np.array([6], np.float32),
    "bn.running_mean": np.array([7], np.float32),
    "bn.num_batches_tracked": np.array(3, np.int64),
    "scale": np.array([8], np.float16),
}


def test_pack_keeps_state_dict_order():
    layout = Layout.of(ARRAYS)
    packed = layout.pack(ARRAYS)
    assert packed.floats.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert packed.ints.tolist() == [3]
    assert (packed.floats.dtype, packed.ints.dtype) == (np.float32, np.int64)
    assert (layout.size, layout.counters) == (9, 1)


def test_unpack_reverses_pack():
    layout = Layout.of(ARRAYS)
    back = layout.unpack(layout.pack(ARRAYS))
    assert list(back) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array, strict=True)


def test_buffers_by_name_or_suffix():
    by_name = Layout.of(ARRAYS, buffers={"scale"})
    assert [entry.name for entry in by_name.entries if entry.buffer] == ["scale"]
    by_suffix = Layout.of(ARRAYS)
    assert [entry.name for entry in by_suffix.entries if entry.buffer] == [
        "bn.running_mean",
        "bn.num_batches_tracked",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv.bias": np.zeros(3, np.float32)}, r"'conv.bias' is float32\[3\], expected float32\[2\]"),
        ({"conv.bias": np.zeros(2, np.int64)}, r"'conv.bias' is int64\[2\], expected float32\[2\]"),
        ({"more": np.zeros(1, np.float32)}, "more"),
    ],
)
def test_pack_refuses_another_model(change, message):
    with pytest.raises(ValueError, match=message):
        Layout.of(ARRAYS).pack(ARRAYS | change)


def test_unpack_refuses_other_lengths():
    with pytest.raises(ValueError, match=r"8 \+ 1 values, expected 9 \+ 1"):
        Layout.of(ARRAYS).unpack(Packed(np.zeros(8, np.float32), np.zeros(1, np.int64)))


def test_packs_in_the_widest_float():
    arrays = {"a": np.array([1 / 3]), "b": np.array([0.5], np.float16), "n": np.array([3])}
    layout = Layout.of(arrays)
    packed = layout.pack(arrays)
    assert packed.floats.dtype == np.float64
    back = layout.unpack(packed)
    assert {name: (array.dtype, array.tolist()) for name, array in back.items()} == {
        name: (array.dtype, array.tolist()) for name, array in arrays.items()
    }


@pytest.mark.parametrize("dtype", [np.longdouble, np.uint64, np.complex64])
def test_refuses_types_that_lose_precision(dtype):
    with pytest.raises(
        TypeError, match=f"{np.dtype(dtype)}; supported are floats up to float64 and integers up to int64"
    ):
        Layout.of({"a": np.zeros(1, dtype)})


def test_fingerprint_ignores_weights():
    layout = Layout.of(ARRAYS)
    assert layout.fingerprint == Layout.of({name: array + 1 for name, array in ARRAYS.items()}).fingerprint
    assert layout.fingerprint != Layout.of(ARRAYS | {"conv.bias": np.zeros(3, np.float32)}).fingerprint
