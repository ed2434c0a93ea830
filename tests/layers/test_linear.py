"""Einsum and Embed: shapes, fan-in, letters and refusals, all from the equation."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors

from llama_jax.axes import LETTERS, activation_spec, using, weight_spec
from llama_jax.layers.linear import Einsum, Embed, Lettered, product, weight

# float32 sums of some tens of products of order 1.
TOLERANCE = 1e-5


@pytest.mark.parametrize(
    ("equation", "left", "right"),
    [
        ("BTD,DNH->BTNH", (2, 5, 6), (6, 3, 4)),
        ("BTNH,NHD->BTD", (2, 5, 3, 4), (3, 4, 6)),
        ("BTD,VD->BTV", (2, 5, 6), (7, 6)),
        ("ITYXA,AD->ITYXD", (2, 1, 3, 4, 6), (6, 5)),
        ("BA,AD->BD", (2, 6), (6, 5)),
    ],
)
def test_rows_in_one_axis_change_no_product_and_no_gradient(equation, left, right):
    x, w = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate((left, right)))

    def run(multiply):
        def total(x, w):
            y = multiply(equation, x, w)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(x, w)

    found, expected = run(product), run(jnp.einsum)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=TOLERANCE, rtol=TOLERANCE)


def boxes(module, *args):
    return jax.eval_shape(module.init, jax.random.key(0), *args)["params"]


def test_the_equation_gives_shape_and_letters_of_the_weight():
    w = boxes(Einsum("BTD,DNH->BTNH", N=4, H=8), jnp.zeros((2, 3, 16)))["w"]
    assert isinstance(w, Lettered)
    assert (w.letters, w.value.shape) == ("DNH", (16, 4, 8))


def test_the_bias_has_the_letters_that_weight_and_output_share():
    b = boxes(Einsum("BTD,DNH->BTNH", N=4, H=8, bias=True), jnp.zeros((2, 3, 16)))["b"]
    assert (b.letters, b.value.shape) == ("NH", (4, 8))


@pytest.mark.parametrize(
    ("equation", "shape", "sizes", "fan_in"),
    [
        ("BTD,DF->BTF", (1, 1, 400), {"F": 500}, 400),
        ("BTNH,NHD->BTD", (1, 1, 8, 50), {"D": 500}, 400),
    ],
)
def test_weights_start_with_a_deviation_of_one_over_the_root_of_fan_in(
    equation, shape, sizes, fan_in
):
    params = nn.meta.unbox(Einsum(equation, **sizes).init(jax.random.key(0), jnp.zeros(shape)))
    # 200,000 samples: the deviation is known to about 0.2 %.
    assert np.std(params["params"]["w"]) == pytest.approx(fan_in**-0.5, rel=0.01)


def test_a_bias_is_added_on_its_own_axes():
    module = Einsum("BTD,DNH->BTNH", N=2, H=3, bias=True)
    params = {"w": jnp.zeros((4, 2, 3)), "b": jnp.arange(6.0).reshape(2, 3)}
    found = module.apply({"params": params}, jnp.ones((1, 1, 4)))
    np.testing.assert_array_equal(found[0, 0], [[0, 1, 2], [3, 4, 5]])


def test_a_missing_size_is_named():
    with pytest.raises(ValueError, match=r"give the sizes of \['F'\], e.g. F=64"):
        boxes(Einsum("BTD,DF->BTF"), jnp.zeros((1, 2, 3)))


@pytest.mark.parametrize(
    ("equation", "sizes", "letters", "shape"),
    [
        ("BTD,EDF->BTEF", {"E": 4, "F": 8}, "EDF", (4, 3, 8)),
        ("BTD,DXYR->BTXYR", {"X": 5, "Y": 6, "R": 3}, "DXYR", (3, 5, 6, 3)),
    ],
)
def test_any_letter_of_the_alphabet_may_have_a_size(equation, sizes, letters, shape):
    w = boxes(Einsum(equation, **sizes, name="w_of"), jnp.zeros((1, 2, 3)))["w"]
    assert (w.letters, w.value.shape) == (letters, shape)


def test_a_linear_map_has_a_field_for_each_letter_of_the_alphabet():
    assert {f.name for f in dataclasses.fields(Einsum) if len(f.name) == 1} == set(LETTERS)


@pytest.mark.parametrize(
    ("equation", "sizes", "words"),
    [
        ("BTD,DF->BTF", {"F": 2, "D": 3}, "D=3 is not needed, for D is read off the input"),
        ("BTD,DF->BTF", {"F": 2, "E": 3}, "E=3 is not needed, for E is no letter of the weight"),
        ("BTD,DZ->BTZ", {}, "unknown axis letter 'Z'; the alphabet is ABC"),
    ],
)
def test_a_letter_that_is_unknown_or_not_needed_is_named(equation, sizes, words):
    with pytest.raises(ValueError, match=words):
        Einsum(equation, **sizes)
    with pytest.raises(TypeError, match="'Z'"):
        Einsum("BTD,DF->BTF", Z=3)


def test_an_input_of_another_rank_is_refused():
    with pytest.raises(ValueError, match="'BTD' was expected"):
        boxes(Einsum("BTD,DF->BTF", F=2), jnp.zeros((1, 2)))


def test_an_id_outside_the_vocabulary_gives_nan_and_not_a_neighbour():
    table = {"params": {"w": jnp.ones((5, 2))}}
    found = Embed(5, 2).apply(table, jnp.array([[4, 5]]))
    assert np.isfinite(found[0, 0]).all() and np.isnan(found[0, 1]).all()


@pytest.mark.parametrize("sizes", [{"fsdp": 4}, {"data": 2, "fsdp": 2}, {"fsdp": 2, "tensor": 2}])
def test_rows_of_a_split_table_have_the_values_and_gradients_of_a_whole_one(sizes, mesh):
    B, T, D, V = 8, 6, 8, 16
    ids = jax.random.randint(jax.random.key(0), (B, T), 0, V)
    table = jax.random.normal(jax.random.key(1), (V, D))

    def total(w, ids):
        x = Embed(V, D).apply({"params": {"w": w}}, ids, jnp.bfloat16)
        return jnp.sum(jnp.sin(x.astype(jnp.float32)))

    step, expected = jax.jit(jax.value_and_grad(total)), jax.value_and_grad(total)(table, ids)
    on = mesh(4, **sizes)
    with using(on):
        w = jax.device_put(table, jax.NamedSharding(on, weight_spec("VD")))
        found = step(w, jax.device_put(ids, jax.NamedSharding(on, activation_spec("BT"))))
    # The sums of a word's gradients are float32, in another order.
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)


def test_scan_puts_the_layer_letter_in_front():
    class Body(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return Einsum("BTD,DA->BTA", A=3)(x), None

    scan = nn.scan(
        Body, variable_axes={"params": 0}, split_rngs={"params": True}, length=5,
        metadata_params={nn.PARTITION_NAME: "L"},
    )  # fmt: skip
    w = boxes(scan(), jnp.zeros((1, 2, 3)), None)["Einsum_0"]["w"]
    assert (w.letters, w.value.shape) == ("LDA", (5, 3, 3))


def test_a_weight_that_is_there_is_not_drawn_again_and_must_have_its_shape():
    drawn = []

    class Given(nn.Module):
        @nn.compact
        def __call__(self):
            return weight(self, "w", lambda *args: drawn.append(1) or jnp.ones(args[1]), "D", (3,))

    assert Given().init(jax.random.key(0))["params"]["w"].letters == "D" and drawn
    drawn.clear()
    np.testing.assert_array_equal(Given().apply({"params": {"w": jnp.arange(3)}}), [0, 1, 2])
    assert not drawn
    with pytest.raises(errors.ScopeParamShapeError):
        Given().apply({"params": {"w": jnp.arange(4)}})
