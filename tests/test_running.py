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
