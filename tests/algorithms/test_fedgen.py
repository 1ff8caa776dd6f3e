import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedmr_flwr import models
from fedmr_flwr.algorithms import fedgen
from fedmr_flwr.algorithms.contract import Reply
from fedmr_flwr.algorithms.fedgen import (
    COUNTS,
    GENERATOR,
    FedGen,
    FedGenOptions,
    Guided,
    GuidedOptions,
    _load,
    _new_generator,
    _train_generator,
    diversity,
    generator_loss,
)
from fedmr_flwr.algorithms.plan import Plan
from fedmr_flwr.config.training import Training
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.models.base import Classifier
from fedmr_flwr.models.packing import layout_of, pack
from fedmr_flwr.training.devices import threads
from fedmr_flwr.training.rules import LocalRule, Task
from fedmr_flwr.training.sgd import fit
from tests.support.rounds import round_of, slots_of

SHAPES = {"cnn": (1, 28, 28), "vgg-fedmr": (1, 28, 28), "charlstm": (80,)}


class Net(Classifier):
    def __init__(self):
        super().__init__()
        self.layer, self.classifier = nn.Linear(2, 3), nn.Linear(3, 4)
        with torch.no_grad():
            for at, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.sin(torch.arange(parameter.numel()) + at).view_as(parameter))

    def features(self, images):
        return torch.tanh(self.layer(images))


X = torch.tensor([[1.0, 2.0], [-0.5, 1.0], [2.0, 0.25], [0.0, -1.0], [1.5, -2.0]])
EXAMPLES = Examples(X, torch.tensor([0, 1, 1, 0, 3]))
DATA = Dataset(EXAMPLES, EXAMPLES, 4, None)
TRAINING = Training(lr=0.1, local_epochs=3, batch_size=2)


def weights(seed=0, classes=4, width=3):
    generator = _new_generator(classes, width, np.random.default_rng(seed))
    return pack(generator, layout_of(generator)).floats


def trained(rule, seed=0):
    """Train with the generator of a seed, or with none."""
    model, received = Net(), {} if seed is None else {GENERATOR: weights(seed)}
    return model, fit(model, DATA, EXAMPLES, TRAINING, np.random.default_rng(0), rule, received).outcome


def guided(**options):
    return Guided(GuidedOptions(**options))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(("options", "seed"), [({"alpha": 0, "beta": 0}, 0), ({}, None)])
def test_plain_training_without_terms(options, seed):
    assert same(trained(guided(**options), seed)[0], trained(LocalRule())[0])


@pytest.mark.parametrize("options", [{"alpha": 0}, {"beta": 0}])
def test_each_term_changes_training(options):
    one, again, plain = (trained(rule)[0] for rule in (guided(**options), guided(**options), LocalRule()))
    assert same(one, again)
    assert not same(one, plain)


def test_extra_loss_by_hand(monkeypatch):
    """The generator is replaced by a table of representations, one for each label."""
    rule, model = guided(alpha=0.5, beta=2.0), Net()
    task = Task(EXAMPLES.labels, TRAINING, np.random.default_rng(0), {GENERATOR: weights()})
    state = rule.begin(model, task)
    table = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    asked = []
    monkeypatch.setattr(fedgen, "_generate", lambda state, labels: (asked.append(labels), table[labels])[1])
    _, extra = rule.forward(model, state, X, EXAMPLES.labels)
    others, own = asked
    assert torch.equal(own, EXAMPLES.labels)
    assert others.shape == EXAMPLES.labels.shape
    with torch.no_grad():
        predicted = model(X).softmax(1)
        wanted = model.classifier(table[EXAMPLES.labels]).softmax(1)
        divergence = (
            (wanted * (wanted / predicted).log()).sum(1).mean()
        )  # from the wanted to the predicted distribution
        taught = -model.classifier(table[others]).log_softmax(1)[range(5), others].mean()
    torch.testing.assert_close(extra.detach(), 0.5 * taught + 2 * divergence)

    extra.backward()
    head = model.classifier.weight.grad.clone()
    model.zero_grad()
    logits = model(X)
    rest = 0.5 * functional.cross_entropy(model.classifier(table[others]), others)
    rest = rest + 2 * (wanted * (wanted.log() - logits.log_softmax(1))).sum(1).mean()
    rest.backward()
    torch.testing.assert_close(head, model.classifier.weight.grad, msg="what is wanted is held fixed")


def test_clients_count_labels():
    for rule, seed in ((guided(), 0), (guided(alpha=0, beta=0), 0), (guided(), None)):
        assert trained(rule, seed)[1].returned[COUNTS].tolist() == [2, 2, 0, 1]


def test_reported_loss_omits_extra_terms():
    once, received = Training(local_epochs=1, batch_size=len(X)), {GENERATOR: weights()}
    losses = [
        fit(Net(), DATA, EXAMPLES, once, np.random.default_rng(0), rule, received).loss
        for rule in (guided(), LocalRule())
    ]
    assert losses[0] == losses[1]


def test_diversity_by_hand():
    noise = torch.tensor([[0.0, 0.0], [2.0, 0.0]])  # mean squares: 2
    assert diversity(noise, torch.ones(2, 3)).item() == 1
    apart = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 0.0]])  # mean of absolute values: 1
    assert diversity(noise, apart).item() == pytest.approx(np.exp(-2 * 2 * 1 / 4))  # two of four pairs


def test_teaching_loss_by_hand():
    made, labels = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])
    heads = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]), torch.tensor([[0.0, 0.0], [0.5, 0.0]])
    shares = torch.tensor([[0.25, 1.0], [0.75, 0.0]])
    first, second = np.array([[1, 0], [0, 2.0]]), np.array([[0.5, 1], [2.5, 0]])  # logits of both heads

    def loss(logits, label):
        return np.log(np.exp(logits).sum()) - logits[label]

    expected = (0.25 * loss(first[0], 0) + 0.75 * loss(second[0], 0) + loss(first[1], 1)) / 2
    assert generator_loss(made, labels, heads, shares).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_generator_learns_from_heads():
    generator = _new_generator(4, 3, np.random.default_rng(0))
    heads = 3 * torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(2, 4)
    heads[0][1] = heads[0][0] + 0.1
    counts = torch.tensor([[5.0, 1.0, 0.0, 2.0], [0.0, 3.0, 0.0, 9.0]])
    seen = []
    forward = generator.forward
    generator.forward = lambda labels, noise: (seen.append(labels), forward(labels, noise))[1]
    options, draws = FedGenOptions(generator_lr=0.003), torch.Generator().manual_seed(0)
    with threads(1):
        losses = [_train_generator(generator, heads, counts, options, draws) for _ in range(6)]
    assert losses[-1] < losses[0] / 2
    assert set(torch.cat(seen).tolist()) == {0, 1, 3}
    labels = torch.tensor([0, 1, 3] * 20)
    made = generator.eval()(labels, torch.randn(60, 100, generator=draws))
    predicted = (made @ heads[0][0].T).argmax(1)
    assert (predicted == labels).float().mean() > 0.9


def test_generator_step_by_hand():
    heads = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([[0.5] * 4, [0.0] * 4])
    counts = torch.tensor([[1.0, 0.0, 0.0, 6.0], [3.0, 2.0, 0.0, 2.0]])
    shares = torch.tensor([[0.25, 0.0, 0.0, 0.75], [0.75, 1.0, 0.0, 0.25]])  # of each label's examples
    found, mine = (_new_generator(4, 3, np.random.default_rng(0)) for _ in range(2))
    options = FedGenOptions(generator_lr=0.01, generator_steps=1, diversity=0.7)
    with threads(1):
        loss = _train_generator(found, heads, counts, options, torch.Generator().manual_seed(5))
        draws = torch.Generator().manual_seed(5)
        labels = torch.tensor([0, 1, 3])[torch.randint(3, (128,), generator=draws)]
        noise = torch.randn(128, 100, generator=draws)
        made = mine.train()(labels, noise)
        taught = sum(
            functional.cross_entropy(made @ weight.T + bias, labels, reduction="none") * share[labels]
            for weight, bias, share in zip(*heads, shares, strict=True)
        ).mean()
        expected = taught + 0.7 * diversity(noise, made)
        expected.backward()
        torch.optim.Adam(mine.parameters(), 0.01, weight_decay=0.01).step()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(found.parameters(), mine.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_training_depends_on_the_generator():
    assert not same(trained(guided(), seed=0)[0], trained(guided(), seed=1)[0])


def combine(strategy, number, replies):
    """Combine replies of clients that were sent the first one's model; return the global model."""
    round = round_of(strategy, number, replies[0].model)
    return strategy.finish(Plan(round, (), ()), slots_of(replies), lambda model: model)


def test_heads_match_label_counts(monkeypatch):
    given = []
    monkeypatch.setattr(
        fedgen, "_train_generator", lambda _, heads, counts, options, draws: given.append((heads, counts, draws)) or 0
    )
    layout = layout_of(Net())
    strategy = FedGen(clients_per_round=3, layout=layout)
    replies = []
    for client in range(3):
        model = Net()
        nn.init.constant_(model.classifier.weight, client)
        nn.init.constant_(model.classifier.bias, 10 + client)
        counts = np.array([client + 1, 0, 5, 0], np.float32)
        replies.append(Reply(pack(model, layout), 1, {}, {COUNTS: counts}))
    for number in (1, 2):
        combine(strategy, number, [replies[0], None, replies[2]])
    (heads, counts, first), (_, _, second) = given
    assert heads[0].shape == (2, 4, 3)
    assert [head.unique().tolist() for head in heads[0]] == [[0], [2]]
    assert [head.unique().tolist() for head in heads[1]] == [[10], [12]]
    assert counts.tolist() == [[1, 0, 5, 0], [3, 0, 5, 0]]
    assert first.initial_seed() != second.initial_seed()


def test_no_labels_teach_nothing():
    generator = _new_generator(4, 3, np.random.default_rng(0))
    heads = torch.zeros(1, 4, 3), torch.zeros(1, 4)
    assert _train_generator(generator, heads, torch.zeros(1, 4), FedGenOptions(), torch.Generator()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_generator_fits_every_models_head(name):
    model = models.build(name, shape := SHAPES.get(name, (3, 32, 32)), 7).eval()
    layout = layout_of(model)
    strategy = FedGen(clients_per_round=1, layout=layout, generator_steps=1)
    assert strategy.returns() == {COUNTS: 7}
    assert strategy.sends() == {}, "there is no generator before the first round"
    packed = pack(model, layout)
    combine(strategy, 1, [Reply(packed, 3, {}, {COUNTS: np.array([1, 2, 0, 0, 0, 0, 0], np.float32)})])
    generator = _new_generator(7, model.classifier.in_features, np.random.default_rng(0))
    _load(generator, strategy.sends()[GENERATOR])
    made = generator.eval()(torch.tensor([0, 6]), torch.randn(2, 100))
    inputs = torch.zeros(2, *shape, dtype=torch.uint8 if len(shape) == 1 else torch.float32)
    assert made.shape == model.features(inputs).shape
    assert model.head(made).shape == (2, 7)


def test_model_without_linear_head_is_refused():
    with pytest.raises(ConfigError, match="fedgen needs a model whose last layer is a Linear with bias"):
        FedGen(clients_per_round=1, layout=Layout.of({"w": np.zeros((3, 2), np.float32)}))


def test_state_restores_the_generator():
    layout = layout_of(Net())
    reply = Reply(pack(Net(), layout), 3, {}, {COUNTS: np.ones(4, np.float32)})
    strategy = FedGen(clients_per_round=1, seed=2, layout=layout)
    combine(strategy, 1, [reply])
    other = FedGen(clients_per_round=1, seed=2, layout=layout)
    other.restore(strategy.save())
    combine(strategy, 2, [reply])
    combine(other, 2, [reply])
    np.testing.assert_array_equal(strategy.sends()[GENERATOR], other.sends()[GENERATOR])
    assert strategy.diagnostics == other.diagnostics
    assert combine(strategy, 3, [reply]).floats.tolist() == reply.model.floats.tolist()
