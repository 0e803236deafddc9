"""Networks run fast: the same numbers, and answers that are not overwritten."""

from __future__ import annotations

import pytest
import torch
import torch._inductor
from diffusers.models.unets.unet_2d import UNet2DOutput

from tt_lib.networks.running import compile_network, cudnn_flags, make_predictor
from tt_lib.networks.unet import Model, make_unet
from tt_lib.predictors import EpsPredictor
from tt_lib.schedules import make_schedule

pytestmark = pytest.mark.usefixtures("one_thread")


def test_bfloat16_weights_give_autocasts_numbers():
    """Weights that are cast once give what autocast gives when it casts them at each evaluation, bit for bit."""
    torch.manual_seed(0)
    model = Model(make_unet("digits", 16).eval(), make_schedule("linear"), (1, 8, 8), "made")
    x, t = torch.randn(3, *model.shape), torch.tensor(0.5, dtype=torch.float64)
    with torch.no_grad():
        plain = EpsPredictor(model.network, model.schedule, bf16=True)(x, t, t)
        cast = make_predictor(model, bf16=True)(x, t, t)
    assert torch.equal(plain, cast)
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}, "the tuner's network stays as it is"


@pytest.mark.parametrize("by_rule", [True, False])
def test_a_replayed_graph_does_not_overwrite_answers_that_a_solver_keeps(monkeypatch, by_rule):
    """A CUDA graph writes each answer to the same place; here a function that does so stands for it."""
    place, asked = torch.zeros(2, 3), []

    def compile(network, *, dynamic, options):
        asked.append((dynamic, options))
        return lambda x, c: UNet2DOutput(place.copy_(network(x, c)))

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(torch._inductor, "list_options", lambda: ["deterministic"] if by_rule else ["freezing"])
    run = compile_network(lambda x, c: x + c)
    first, second = (run(torch.full((2, 3), value), torch.ones(1)) for value in (1.0, 5.0))
    assert asked == [(False, {"triton.cudagraphs": True} | ({"deterministic": True} if by_rule else {}))]
    assert first.eq(2).all() and second.eq(6).all() and place.eq(6).all()


def test_this_torch_takes_the_options():
    compile_network(torch.nn.Identity())  # an option that this torch does not know is refused here
    assert torch._inductor.list_mode_options("reduce-overhead") == {"triton.cudagraphs": True}


def test_flags_are_put_back():
    before = torch.backends.cudnn.allow_tf32
    with pytest.raises(ZeroDivisionError), cudnn_flags(allow_tf32=not before):
        assert torch.backends.cudnn.allow_tf32 != before
        raise ZeroDivisionError
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_whose_activations_are_made_again_are_those_of_the_network(monkeypatch, bf16):
    monkeypatch.setattr(torch, "compile", lambda network, *, dynamic: network)  # the compiler has tests of its own
    torch.manual_seed(0)
    model = Model(make_unet("digits", 16).eval().requires_grad_(False), make_schedule("linear"), (1, 8, 8), "made")
    found = []
    for compile in (False, True):
        predictor = make_predictor(model, bf16=bf16, compile=compile, gradients=True)
        assert predictor.remakes == compile
        x = torch.linspace(-1, 1, 128).view(2, 1, 8, 8).requires_grad_()
        tau = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        answer = predictor(x, torch.tensor(0.5, dtype=torch.float64), tau)
        answer.square().sum().backward()
        found.append((answer.detach(), x.grad, tau.grad))
    assert found[0][1].abs().min() > 0 and found[0][2] != 0
    for plain, again in zip(*found, strict=True):
        assert torch.equal(plain, again)
