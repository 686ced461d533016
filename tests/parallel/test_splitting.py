"""Parts run one after the other give what the whole model gives, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pycomm.errors import ArgumentError
from pycomm.parallel.splitting.split import split
from tests.parallel.parts_runner import run, train_once
from tests.parallel.split_models import (
    WORDS,
    AroundBranches,
    Block,
    Branches,
    Skips,
    TiedLanguageModel,
)


def tokens(rows: int = 3) -> torch.Tensor:
    return torch.randint(0, WORDS, (rows, 5), generator=torch.Generator().manual_seed(1))


def pairs(rows: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 2, (rows, 1), generator=generator)


def seeded(cls, *args, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return cls(*args, **kwargs).double()


def assert_same_training(model: nn.Module, call, parts, inputs, loss_of) -> None:
    """Compare outputs and gradients of the whole model with those of its parts."""
    whole = copy.deepcopy(model)
    expected = loss_of(call(whole))
    expected.backward()
    assert torch.equal(train_once(parts, inputs, loss_of), expected)
    for (name, p), q in zip(whole.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=0, atol=1e-13, msg=name)


def sum_of_squares(output) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output.square().sum()
    return output["logits"].square().sum() + output["hidden"][0].sum()


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 6])
def test_tied_language_model(stages: int) -> None:
    model = seeded(TiedLanguageModel)
    made = split(model, stages)
    assert len(made.parts) == stages
    assert_same_training(model, lambda m: m(tokens()), made.parts, tokens(), sum_of_squares)
    names = [n for part in made.parts for n, _ in part.module.named_parameters()]
    assert set(names) == {n for n, _ in model.named_parameters()}
    state = {n for part in made.parts for n in part.module.state_dict()}
    assert state == set(model.state_dict())
    if stages > 1:
        (tie,) = made.ties
        assert tie.names == ("words.weight", "head.weight")
        assert tie.stages == (0, stages - 1)


@pytest.mark.parametrize("stages", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("as_dict", [False, True])
def test_skips_several_inputs_and_outputs(stages: int, as_dict: bool) -> None:
    model = seeded(Skips)
    x, mask = pairs()
    made = split(model, stages)
    given = {"mask": mask, "x": x} if as_dict else (x, mask)
    assert_same_training(model, lambda m: m(x, mask), made.parts, given, sum_of_squares)
    output = run(made.parts, given)
    assert list(output) == ["logits", "hidden"] and isinstance(output["hidden"][1], list)


def test_other_sizes_than_before() -> None:
    made = split(seeded(Skips), 3)
    for rows in (1, 4):
        assert run(made.parts, pairs(rows))["logits"].shape == (rows, 4)


def test_what_crosses() -> None:
    made = split(seeded(Skips), 8)
    x = run(made.parts, pairs())
    assert x["logits"].dtype == torch.float64
    assert any(len(part.takes) > 2 for part in made.parts)
    later = [name for part in made.parts[1:] for name in part.takes]
    assert "input" not in later and "output" not in later


def test_optional_inputs_are_named() -> None:
    model = seeded(Skips)
    x, mask = pairs()
    made = split(model, 2, inputs=["x", "mask", "scale"])
    assert torch.equal(run(made.parts, (x, mask, 3.0))["logits"], model(x, mask, 3.0)["logits"])
    with pytest.raises(ArgumentError, match=r"inputs=\['x'\] does not fit.*'mask' is missing"):
        split(model, 2, inputs=["x"])
    with pytest.raises(ArgumentError, match="'wrong' is unknown"):
        split(model, 2, inputs=["x", "mask", "wrong"])


def test_wrong_inputs_when_it_runs() -> None:
    made = split(seeded(Skips), 2)
    with pytest.raises(ArgumentError, match=r"has 3 values, but.* 2 \(x, mask\)"):
        run(made.parts, (*pairs(), 1.0))
    with pytest.raises(
        ArgumentError, match=r"has \['x'\], but the model was split for \['mask', 'x"
    ):
        run(made.parts, {"x": pairs()[0]})


def test_cuts_by_name() -> None:
    model = seeded(TiedLanguageModel)
    made = split(model, 3, cuts=["blocks.1", "norm"])
    assert made.cuts == ["blocks.1", "norm"]
    assert next(n for n, _ in made.parts[1].module.named_parameters()).startswith("blocks.1.")
    made = split(model, 2, cuts=["blocks.1.inner"])
    assert made.cuts == ["blocks.1.inner.0"]
    assert_same_training(model, lambda m: m(tokens()), made.parts, tokens(), sum_of_squares)


def test_cuts_through_layers_of_a_sequential() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 2)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    assert split(model, 2, cuts=["1"]).cuts == ["1"]
    made = split(model, 2, cuts=["0.1"])
    assert made.cuts == ["0.1"]
    assert_same_training(model, lambda m: m(x), made.parts, x, sum_of_squares)


def test_wrong_cuts() -> None:
    model = seeded(TiedLanguageModel)
    with pytest.raises(ArgumentError, match="'block.1' is no module.*'blocks.1' meant"):
        split(model, 2, cuts=["block.1"])
    with pytest.raises(ArgumentError, match="'blocks.0' is not behind 'blocks.1'"):
        split(model, 3, cuts=["blocks.1", "blocks.0"])
    with pytest.raises(ArgumentError, match="'words' is not behind the first layer"):
        split(model, 2, cuts=["words"])
    with pytest.raises(ArgumentError, match="make 2 parts, but there are 3 stages"):
        split(model, 3, cuts=["norm"])


def test_layers_of_a_list_hand_on_anything() -> None:
    class Two(nn.Module):
        def forward(self, x):
            return {"a": x, "b": (x * 2, 3)}

    class One(nn.Module):
        def forward(self, given):
            return given["a"] + given["b"][0] * given["b"][1]

    layers = [nn.Linear(4, 4), Two(), One(), nn.Linear(4, 2)]
    model = nn.Sequential(*layers).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    for given in (layers, nn.ModuleList(layers), model):
        made = split(given, 4)
        assert made.names == ("0", "1", "2", "3")
        model.zero_grad()
        assert_same_training(model, lambda m: m(x), made.parts, x, sum_of_squares)


def test_more_stages_than_layers() -> None:
    with pytest.raises(ArgumentError, match="2 layers cannot be split into 3 parts"):
        split([nn.Linear(2, 2), nn.Linear(2, 2)], 3)


def test_the_mode_is_that_of_the_part() -> None:
    model = seeded(TiedLanguageModel, p=0.5)
    made = split(model, 2, leaves=[nn.Linear], cuts=["blocks.1.inner"])
    for mode in (False, True, False):
        for part in made.parts:
            part.module.train(mode)
        torch.manual_seed(5)
        expected = model.train(mode)(tokens())
        torch.manual_seed(5)
        assert torch.equal(run(made.parts, tokens()), expected)
        assert model.training == mode and isinstance(model.blocks[1].training, bool)


def test_a_submodule_that_cannot_be_traced_stays_whole() -> None:
    model = seeded(AroundBranches)
    made = split(model, 3)
    assert made.names == ("start", "branches", "end")
    x = {"x": torch.randn(3, 4, dtype=torch.float64)}
    assert torch.equal(run(made.parts, x), model(x))


def test_a_model_that_cannot_be_traced() -> None:
    model = Branches()
    with pytest.raises(ArgumentError) as caught:
        split(model, 2)
    text = str(caught.value)
    assert "Branches.forward cannot be traced at" in text and "if x.sum() > 0:" in text
    assert "split_models.py:" in text and "pass a list of layers" in text
    assert vars(model).keys() == vars(Branches()).keys() and model.training is True


def test_a_cut_inside_what_cannot_be_traced() -> None:
    with pytest.raises(ArgumentError, match="a cut lies in 'branches', but Branches.forward"):
        split(AroundBranches(), 2, cuts=["branches.two"])
    with pytest.raises(ArgumentError, match="'branches' stays whole, but a cut lies inside it"):
        split(AroundBranches(), 2, cuts=["branches.two"], leaves=["branches"])
    with pytest.raises(ArgumentError, match="leaves: the model has no module 'twigs'"):
        split(AroundBranches(), 2, leaves=["twigs"])


def test_rows_of_composed_modules_are_opened() -> None:
    inner = nn.Sequential(Block(), Block(), Block())
    outer = nn.Sequential(nn.Linear(8, 8), inner)
    assert split(outer, 2).names == ("0", "1")
    assert split(outer, 3).names == ("0", "1.0", "1.1", "1.2")


def test_random_numbers_are_not_frozen() -> None:
    class Noisy(nn.Module):
        def __init__(self, inner: bool):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.noise = Noise() if inner else None

        def forward(self, x):
            x = self.a(x)
            return self.b(x + torch.randn(4) if self.noise is None else self.noise(x))

    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn(4)

    state = torch.get_rng_state()
    with pytest.raises(ArgumentError, match="random numbers are drawn"):
        split(Noisy(False), 2)
    model = Noisy(True)
    torch.set_rng_state(state)
    made = split(model, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert "noise" in made.names
    x = torch.randn(2, 4)
    assert not torch.equal(run(made.parts, x), run(made.parts, x))


def test_constants_of_forward_are_no_state() -> None:
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.b(self.a(x) * torch.arange(4))

    model = Constant()
    before = set(vars(model))
    made = split(model, 2)
    x = torch.randn(2, 4)
    assert torch.equal(run(made.parts, x), model(x))
    assert set(vars(model)) == before
    assert {n for p in made.parts for n in p.module.state_dict()} == set(model.state_dict())


def test_what_it_chose_and_why() -> None:
    made = split(seeded(TiedLanguageModel), 2)
    text = made.explain()
    assert "2 parts of 7 layers, balanced by the number of parameters" in text
    assert "tied: words.weight = head.weight in parts 0, 1" in text
    shares = [float(line.split("%")[0].split()[-1]) for line in text.splitlines()[2:4]]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    by_cost = split([nn.Linear(2, 2) for _ in range(3)], 2, balance=[5, 1, 1])
    assert [len(r) for r in by_cost.ranges] == [1, 2]
    with pytest.raises(ArgumentError, match="each of the 3 layers a cost.*they are 0, 1, 2"):
        split([nn.Linear(2, 2) for _ in range(3)], 2, balance=[5, 1])
    with pytest.raises(ArgumentError, match="balance='time' needs sample="):
        split(Block(), 2, balance="time")


def test_functions_of_the_users_parameters() -> None:
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Parameter(torch.randn(4, 4, dtype=torch.float64))
            self.second = nn.Parameter(torch.randn(4, 4, dtype=torch.float64))

        def forward(self, x):
            return F.relu(x @ self.first) @ self.second

    model = Bare()
    x = torch.randn(3, 4, dtype=torch.float64)
    made = split(model, 2)
    assert made.names == ("first", "second")
    assert_same_training(model, lambda m: m(x), made.parts, x, sum_of_squares)


def test_values_that_are_called_as_the_ends_are() -> None:
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.output, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, input):
            return self.b(self.output(input)) + input

    model = Late().double()
    x = torch.randn(3, 4, dtype=torch.float64)
    made = split(model, 2)
    assert not {"input", "output"} & set(made.parts[0].gives)
    assert_same_training(model, lambda m: m(x), made.parts, x, sum_of_squares)
