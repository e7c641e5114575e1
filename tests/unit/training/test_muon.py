import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from hsokv_ray.training.muon import Muon, orthogonalize

LR, DECAY = 0.02, 0.1


def train(optimizer: torch.optim.Optimizer, params: list[torch.Tensor], steps: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)])
def test_a_matrix_moves_as_with_torchs_muon(shape):
    ours, theirs = (nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0))) for _ in range(2))
    train(Muon([ours], lr=LR, weight_decay=DECAY), [ours], 5)
    reference = torch.optim.Muon([theirs], lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    train(reference, [theirs], 5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=LR * 0.02)


def test_experts_move_as_so_many_separate_matrices():
    start = torch.randn(4, 24, 16, generator=torch.Generator().manual_seed(0))
    together, apart = nn.Parameter(start.clone()), [nn.Parameter(matrix.clone()) for matrix in start]
    gradients = torch.randn(5, 4, 24, 16)
    batched = Muon([together], lr=LR, weight_decay=DECAY)
    single = torch.optim.Muon(apart, lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        together.grad = gradient
        batched.step()
        for param, part in zip(apart, gradient, strict=True):
            param.grad = part
        single.step()
    torch.testing.assert_close(together, torch.stack(list(apart)), rtol=0, atol=LR * 0.02)


def test_the_rest_moves_exactly_as_with_fused_adamw():
    ours, theirs = nn.Parameter(torch.ones(33)), nn.Parameter(torch.ones(33))
    train(Muon([{"params": [ours], "matrices": False}], lr=LR, weight_decay=DECAY), [ours], 5)
    train(torch.optim.AdamW([theirs], lr=LR, weight_decay=DECAY, betas=(0.9, 0.95), fused=True), [theirs], 5)
    assert torch.equal(ours, theirs)


@settings(deadline=None, max_examples=25)
@given(batch=st.integers(0, 3), rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 9))
def test_orthogonalizing_keeps_the_singular_vectors_and_brings_the_values_near_one(batch, rows, columns, seed):
    matrices = torch.randn(batch, rows, columns, generator=torch.Generator().manual_seed(seed))
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalize(matrices, num_iterations=10).float()
    values = (u.mT @ result @ vh.mT).diagonal(dim1=-2, dim2=-1)
    # A direction far below the largest needs more iterations than it gets, so only the others are judged.
    clear = s > 0.05 * s.amax(dim=-1, keepdim=True) if s.numel() else s.bool()
    assert ((values - 1).abs()[clear] < 0.5).all()


def test_a_gradient_of_zero_moves_nothing_but_the_decay():
    param = nn.Parameter(torch.ones(3, 4, 5))
    param.grad = torch.zeros_like(param)
    Muon([param], lr=LR, weight_decay=DECAY).step()
    torch.testing.assert_close(param.detach(), torch.full((3, 4, 5), 1 - LR * DECAY))


def test_a_vector_among_the_matrices_is_refused():
    with pytest.raises(ValueError, match=r"2-D and 3-D parameters, got \(7,\)"):
        Muon([nn.Parameter(torch.ones(7))], lr=LR)


def test_sharded_parameters_move_as_whole_ones(tmp_path):
    mp.spawn(_compare_sharded_with_whole, args=(str(tmp_path / "rendezvous"),), nprocs=2)


def _compare_sharded_with_whole(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for shape in [(6, 10), (10, 6), (3, 6, 4)]:
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(shape, generator=generator)
        whole, sharded = nn.Parameter(start.clone()), nn.Parameter(distribute_tensor(start, mesh, [Shard(0)]))
        one, two = Muon([whole], lr=LR), Muon([sharded], lr=LR)
        for _ in range(3):
            whole.grad = torch.randn(shape, generator=generator)
            sharded.grad = distribute_tensor(whole.grad, mesh, [Shard(0)])
            one.step()
            two.step()
        assert isinstance(sharded, DTensor)
        torch.testing.assert_close(sharded.full_tensor().detach(), whole.detach(), rtol=0, atol=1e-6)
    dist.destroy_process_group()
