"""The states of local rules: copied in place, and compared by what a captured step depends on."""

from typing import NamedTuple

import torch

from fedmr_flwr.gpu import states


class State(NamedTuple):
    """A state with one part of each sort."""

    tensors: tuple
    network: torch.nn.Module
    draws: torch.Generator | None


def make_state(value, seed=0):
    network = torch.nn.Linear(1, 1).requires_grad_(False)
    network.weight.fill_(value)
    tensors = (torch.full((2,), value), (torch.full((1,), value),))
    return State(tensors, network, torch.Generator().manual_seed(seed))


def places(state):
    found = (state.tensors[0], state.tensors[1][0], state.network.weight)
    return [tensor.data_ptr() for tensor in found], state.draws


def test_state_is_copied_in_place():
    resident, other = make_state(1.0), make_state(2.0, seed=5)
    before = places(resident)
    states.copy_into(resident, other)
    assert places(resident) == before
    assert resident.tensors[0].tolist() == [2, 2]
    assert resident.tensors[1][0].item() == resident.network.weight.item() == 2
    assert torch.equal(torch.rand(3, generator=resident.draws), torch.rand(3, generator=other.draws))


def test_finds_a_states_generators():
    state = make_state(1.0)
    assert states.generators((state, state.tensors)) == [state.draws]
    assert states.generators(None) == []


def test_values_do_not_change_the_kind():
    assert states.kind_of(make_state(1.0)) == states.kind_of(make_state(2.0, seed=5))


def test_structure_changes_the_kind():
    plain, frozen = make_state(1.0), make_state(1.0)
    frozen.network.eval()
    fewer, typed = plain._replace(tensors=plain.tensors[:1]), plain._replace(tensors=(torch.ones(2).double(),))
    kinds = [states.kind_of(state) for state in (plain, fewer, typed, frozen, plain._replace(draws=None), None)]
    assert len(set(kinds)) == 6
