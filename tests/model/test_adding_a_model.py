"""docs/adding-a-model.md, done: its file, as it stands there, trains and decodes."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from pausebench.config.groups import AttentionKind, ModelConfig
from pausebench.config.pauses import PausePolicy
from pausebench.data.batch import Batch
from pausebench.evaluation.generate import generate
from pausebench.model import fast
from pausebench.model.attention import AttentionMask
from pausebench.model.decoder import Block, Decoder
from pausebench.pauses import inference_rows
from tests.model import parallel_blocks

DOCS = Path(__file__).parents[2] / "docs" / "adding-a-model.md"
V = 40
CONFIG = ModelConfig("test", n_layers=2, n_heads=2, d_model=16, d_mlp=32, max_positions=64, linear_gain=1.0)


class ParallelBlock(Block):
    """The definition, as a formula."""

    def forward(self, x_BTD: Tensor, allowed: Tensor | None) -> Tensor:
        return x_BTD + self.attention(self.norm_attention(x_BTD), allowed) + self.mlp(self.norm_mlp(x_BTD))


def plain() -> Decoder:
    model = Decoder(CONFIG, V)
    for block in model.blocks:
        block.__class__ = ParallelBlock
    model.initialize(3)
    return model


def parallel() -> fast.FastDecoder:
    model = Decoder(CONFIG, V)
    model.initialize(3)
    return parallel_blocks.use(model)


def rows() -> Batch:
    ids = torch.randint(0, V, (3, 20), generator=torch.Generator().manual_seed(1))
    return Batch(ids, ids.roll(-1, 1), AttentionMask(AttentionKind.causal), 20)


def test_the_page_shows_the_file_and_it_is_short() -> None:
    [shown] = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    file = Path(parallel_blocks.__file__).read_text()
    assert shown == file
    assert len(file.splitlines()) <= 40


def test_the_loss_and_its_gradient_are_those_of_the_formula() -> None:
    found, expected = parallel(), plain()
    losses = [model.summed_loss(rows()) for model in (found, expected)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for (name, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_decoding_with_a_cache_finds_the_tokens_of_the_formula() -> None:
    found, expected = parallel().double().eval(), plain().double().eval()
    prefix = torch.tensor([[5, 9, 2, 31]])
    rows = inference_rows(
        prefix, torch.tensor([4]), torch.tensor([], dtype=torch.int64), PausePolicy(k=2), pause_id=V - 1, pad_id=0
    )
    [answer] = generate(found, rows, AttentionKind.causal, max_new_tokens=6, end_id=V - 2, pause_id=V - 1)
    ids = [*prefix[0].tolist(), V - 1, V - 1]
    for token in answer.tokens:
        logits = expected.logits(expected(torch.tensor([ids])))[0, -1]
        assert token == int(logits[: V - 1].argmax())
        ids.append(token)
    assert len(answer.tokens) == 6
