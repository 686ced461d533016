"""Tensor parallelism gives the gradients and weights of one process."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pycomm
from pycomm.parallel.dropout import KeyedDropout
from pycomm.parallel.gradient_norm import norm_of, squares_of
from pycomm.parallel.tensor import (
    counted,
    divisions,
    ready_plan,
    take_shard,
    tensor_parallel,
    vocabulary_cross_entropy,
)
from tests.tensor_models import (
    BATCH,
    LENGTH,
    MODELS,
    SYMBOLS,
    assert_gradients,
    character_gpt,
    encoder,
    mean_loss,
    plan,
    tokens,
    whole,
)
from tests.training import adamw, sgd
from tests.training import one_thread as one_thread


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_one_process(comm, name: str, sequence: bool) -> None:
    reference = MODELS[name](comm)
    model = MODELS[name](comm)
    model = tensor_parallel(model, comm, plan(model), sequence)
    for seed in range(2):  # gradients of the second are added to those of the first
        x, t = tokens(seed)
        loss, expected = mean_loss(model(x), t), mean_loss(reference(x), t)
        loss.backward()
        expected.backward()
        assert abs(loss - expected) <= 1e-14
        assert_gradients(comm, model, reference)
    assert len(set(comm.all_gather_object(loss.item()))) == 1
    assert all(p.shape == reference.get_parameter(n).shape for n, p in whole(comm, model).items())


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("optimizer", "bound"), [(sgd, 1e-12), (adamw, 1e-9)])
def test_weights_after_ten_steps(comm, name, sequence, optimizer, bound) -> None:
    reference, model = MODELS[name](comm), MODELS[name](comm)
    model = tensor_parallel(model, comm, plan(model), sequence)
    optimizers = [optimizer(list(m.named_parameters())) for m in (model, reference)]
    for step in range(10):
        x, t = tokens(step, 1 + step % 3)
        for m, o in zip((model, reference), optimizers):
            o.zero_grad()
            mean_loss(m(x), t).backward()
            o.step()
    weights = whole(comm, model)
    for name, p in reference.named_parameters():
        assert (weights[name] - p).abs().max() <= bound * p.abs().max(), name


@pytest.mark.parametrize("sequence", [False, True])
def test_a_vocabulary_that_stays_divided(comm, sequence: bool) -> None:
    reference, model = character_gpt(comm), character_gpt(comm)
    tensor_parallel(model, comm, {**ready_plan(model), "3.1": "vocabulary"}, sequence)
    x, t = tokens(0)
    logits = model(x)
    assert logits.shape[:-1] == (BATCH, LENGTH)
    assert sum(comm.all_gather_object(logits.shape[-1])) == SYMBOLS
    loss = vocabulary_cross_entropy(logits, t, comm, SYMBOLS)
    expected = mean_loss(reference(x), t)
    loss.backward()
    expected.backward()
    assert abs(loss - expected) <= 1e-14
    assert_gradients(comm, model, reference)


@pytest.mark.parametrize("sequence", [False, True])
def test_the_length_comes_first(comm, sequence: bool) -> None:
    reference = encoder(comm, True, batch_first=False)
    model = tensor_parallel(copy.deepcopy(reference), comm, None, sequence, sequence_dim=0)
    x = torch.randn(LENGTH, BATCH, reference.layers[0].linear1.in_features).double()
    comm.broadcast(x)
    y, expected = model(x), reference(x)
    assert (y - expected).norm() <= 1e-13 * expected.norm()
    y.square().sum().backward()
    expected.square().sum().backward()
    assert_gradients(comm, model, reference)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("sequence", [False, True])
def test_evaluation_takes_no_fast_path_of_torch(comm, sequence: bool) -> None:
    torch.manual_seed(0)
    width = 6 * comm.size
    layer = nn.TransformerEncoderLayer(width, 2 * comm.size, 13, batch_first=True)
    reference = nn.TransformerEncoder(layer, 2).double().eval()
    assert reference.use_nested_tensor
    model = tensor_parallel(copy.deepcopy(reference), comm, None, sequence)
    x = torch.randn(BATCH, LENGTH, width).double()
    comm.broadcast(x)
    padding = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    padding[1, 4:] = True
    with torch.inference_mode():
        y, expected = (m(x, src_key_padding_mask=padding) for m in (model, reference))
    assert (y - expected)[~padding].norm() <= 1e-13 * expected.norm()


@pytest.mark.parametrize("sequence", [False, True])
def test_a_copy_of_a_divided_model(comm, sequence: bool) -> None:
    reference, model = character_gpt(comm), character_gpt(comm)
    model = copy.deepcopy(tensor_parallel(model, comm, None, sequence))
    x, t = tokens(0)
    mean_loss(model(x), t).backward()
    mean_loss(reference(x), t).backward()
    assert_gradients(comm, model, reference)


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_keyed_dropout_drops_what_one_process_drops(comm, sequence, batch_first) -> None:
    reference = encoder(comm, True, batch_first=batch_first, dropout=0.3)
    model = copy.deepcopy(reference)
    model = tensor_parallel(model, comm, None, sequence, sequence_dim=int(batch_first))
    shape = (BATCH, LENGTH) if batch_first else (LENGTH, BATCH)
    x = torch.randn(*shape, reference.layers[0].linear1.in_features).double()
    comm.broadcast(x)
    results = []
    for m in (model, reference):
        with KeyedDropout(m, seed=5)(step=3, first_sample=4, samples=BATCH):
            results.append(m(x))
        results[-1].square().sum().backward()
    y, expected = results
    assert (y - expected).norm() <= 1e-13 * expected.norm()
    assert_gradients(comm, model, reference)


class Attending(nn.Module):
    """Attention alone, on (length, batch, width) or (batch, length, width)."""

    def __init__(self, comm, batch_first: bool, need_weights: bool):
        super().__init__()
        torch.manual_seed(4)
        heads = 2 * comm.size
        self.attention = nn.MultiheadAttention(
            3 * heads, heads, dropout=0.3, batch_first=batch_first
        )
        self.after, self.weights = nn.Dropout(0.3), need_weights

    def forward(self, x):
        mixed, weights = self.attention(x, x, x, need_weights=self.weights)
        return self.after(mixed).sum() if weights is None else self.after(mixed).sum() + weights[0]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_has_its_batch_first_whatever_is_said_of_others(
    comm, batch_first: bool, need_weights: bool
) -> None:
    reference = Attending(comm, batch_first, need_weights).double()
    model = tensor_parallel(copy.deepcopy(reference), comm, {"attention": "attention"})
    shape = (BATCH, LENGTH) if batch_first else (LENGTH, BATCH)
    x = torch.randn(*shape, 6 * comm.size, generator=torch.Generator().manual_seed(1)).double()
    results = []
    for m in (model, reference):
        keyed = KeyedDropout(m, 5, batch_dims={"*": 1 - batch_first})
        with keyed(step=3, first_sample=4, samples=BATCH):
            results.append(m(x))
    y, expected = results
    assert (y - expected).norm() <= 1e-13 * expected.norm()
    with KeyedDropout(reference, 5, {"*": 1 - batch_first})(3, 0, BATCH):
        assert not torch.allclose(reference(x), expected), "it drops"


@pytest.mark.parametrize("sequence", [False, True])
def test_with_data_parallelism(comm, sequence: bool) -> None:
    if comm.size % 2:
        pytest.skip("for an even number of ranks")
    mesh = pycomm.Mesh(comm, dp=None, tp=2)
    tp, dp = mesh["tp"], mesh["dp"]
    reference, model = character_gpt(tp), character_gpt(tp)
    model = pycomm.DataParallel(tensor_parallel(model, tp, None, sequence), dp)
    x, t = tokens(0, 2 * dp.size)
    mine = slice(2 * dp.rank, 2 * dp.rank + 2)
    mean_loss(model(x[mine]), t[mine]).backward()
    mean_loss(reference(x), t).backward()
    assert_gradients(tp, model.module, reference)
    del model
    mesh.close()


@pytest.mark.parametrize("sequence", [False, True])
def test_blocks_that_are_computed_again(comm, sequence: bool) -> None:
    reference = character_gpt(comm)
    model = tensor_parallel(character_gpt(comm), comm, None, sequence)
    x, t = tokens(0)
    y = x
    for block in model:
        y = block(y) if y is x else checkpoint(block, y, use_reentrant=False)
    mean_loss(y, t).backward()
    mean_loss(reference(x), t).backward()
    assert_gradients(comm, model, reference)


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize(("batch", "length"), [(2, 1), (1, 3), (0, 5)])
def test_sequences_shorter_than_there_are_ranks(comm, sequence, batch, length) -> None:
    reference = character_gpt(comm)
    model = tensor_parallel(character_gpt(comm), comm, None, sequence)
    x = tokens(0, batch)[0][:, :length]
    for m in (model, reference):
        m(x).square().sum().backward()
    assert_gradients(comm, model, reference)


@pytest.mark.parametrize("sequence", [False, True])
def test_what_is_sent_between_blocks(comm, monkeypatch, sequence: bool) -> None:
    """Neighbouring blocks leave the sequence divided: it is gathered where the last one ends."""
    if comm.size == 1:
        pytest.skip("one rank sends nothing")
    model = tensor_parallel(character_gpt(comm), comm, None, sequence)
    calls: list[str] = []
    kinds = ("all_reduce", "all_gather", "reduce_scatter")
    for kind in kinds:
        monkeypatch.setattr(comm, kind, counting(getattr(comm, kind), kind, calls))
    x, t = tokens(0)
    loss = mean_loss(model(x), t)
    # The embedding; attention and MLP of two blocks; the head. A gather asks for lengths before.
    sent = [calls.count(kind) for kind in kinds]
    assert sent == ([1, 2 * 4 + 2 + 1, 4] if sequence else [1 + 4, 1, 0])
    calls.clear()
    loss.backward()
    # Sequences divided: weights and biases of two norms, and biases of two row layers, a block.
    sent = [calls.count(kind) for kind in kinds]
    assert sent == ([1 + 2 * 6, 4 + 1, 4] if sequence else [1 + 4, 0, 0])


def counting(function, name: str, calls: list[str]):
    def counted(*args, **kwargs):
        calls.append(name)
        return function(*args, **kwargs)

    return counted


def test_rank_0_gives_the_weights(comm) -> None:
    model, reference = character_gpt(comm, seed=comm.rank), character_gpt(comm, seed=0)
    weights = whole(comm, tensor_parallel(model, comm))
    for name, p in reference.named_parameters():
        assert torch.equal(weights[name], p), name


def test_a_rank_has_its_part_of_the_weights(comm) -> None:
    reference, model = character_gpt(comm), tensor_parallel(character_gpt(comm), comm)
    divided = divisions(model)
    names = {"inward.weight", "inward.bias", "project.weight", "1.weight", "1.bias", "3.weight"}
    assert set(divided) == {
        "0.symbols.weight",
        "3.1.weight",
        *(f"{b}.attention.1.{n}" for b in (1, 2) for n in names if "." in n and n[0] in "ip"),
        *(f"{b}.feedforward.{n}" for b in (1, 2) for n in names if n[0] in "13"),
    }
    for name, p in model.named_parameters():
        full = reference.get_parameter(name).detach()
        mine = take_shard(full, divided[name], comm.rank) if name in divided else full
        assert torch.equal(p, mine), name
        assert p.untyped_storage().nbytes() == mine.nbytes  # the whole one is not kept
    numbers = comm.all_gather_object(sum(p.numel() for _, p in counted(model, comm)))
    assert sum(numbers) == sum(p.numel() for p in reference.parameters())


def test_the_norm_of_the_gradient(comm) -> None:
    reference, model = character_gpt(comm), tensor_parallel(character_gpt(comm), comm)
    for m in (model, reference):
        mean_loss(m(tokens(0)[0]), tokens(0)[1]).backward()
    norm = norm_of(comm, [squares_of(p.grad) for _, p in counted(model, comm)])
    expected = torch.cat([p.grad.flatten() for p in reference.parameters()]).norm()
    assert abs(norm - expected) <= 1e-13 * expected
