"""Every registered algorithm trains with every option of local training, or refuses it in one line."""

import pytest

from fedmr_flwr.config import registry
from fedmr_flwr.errors import ConfigError
from tests.support.runs import run

RECIPES = {
    "adam": "optimizer=adam schedule=cosine",
    "sgd": "nesterov=true weight-decay=0.01 schedule=inverse label-smoothing=0.1 work=stragglers:0.5 local-epochs=2",
    "clipped": "clip-norm=1 local-epochs=null local-steps=3",
}
# Those whose mathematics need sums of gradients.
SUMS = {"scaffold"}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", sorted(registry.ALGORITHMS))
def test_trains_with_every_recipe(name, recipe, toy):
    options = [f"training.{option}" for option in RECIPES[recipe].split()]
    own = ["strategy.generator-steps=3"] if name == "fedgen" else []
    if name in SUMS and recipe != "sgd":
        with pytest.raises(ConfigError, match=f"clients of '{name}' do not work with training") as caught:
            toy(f"strategy.name={name}", *options)
        assert "\n" not in str(caught.value)
        return
    settings = toy(f"strategy.name={name}", *own, *options, "rounds=2", "clients-per-round=2")
    out = run(settings)
    assert [row["failures"] for row in out.read_rows()] == [0, 0]
