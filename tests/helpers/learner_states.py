"""States of learners, compared bit for bit."""

import torch

from hsokv_ray.swarm.learner import State


def same(first: State, second: State) -> bool:
    """Whether two states hold the same."""
    if first.tensors.keys() != second.tensors.keys() or first.values != second.values:
        return False
    return all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())
