"""transformers' GPT-2 with our weights, and the ordinary loop that trains it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pausebench.model.decoder import Decoder

INSTALL = "pip install 'pausebench[bench]'"
# GPT-2's tanh form in one kernel: `gelu_new`, its usual name, is the same formula in eight operations.
ACTIVATIONS = {"gelu": "gelu_pytorch_tanh", "gelu_erf": "gelu", "relu": "relu"}
NAMES = {
    "wte": "token_embedding",
    "wpe": "position_embedding",
    "ln_f": "norm_out",
    "ln_1": "norm_attention",
    "ln_2": "norm_mlp",
    "attn.c_attn": "qkv",
    "attn.c_proj": "attention_out",
    "mlp.c_fc": "mlp_in",
    "mlp.c_proj": "mlp_out",
}


def missing(*modules: str) -> str | None:
    """What to install where one of these is not, else None."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} is not installed: {INSTALL}" if absent else None


def gpt2_of(model: Decoder) -> Any:
    """A ``GPT2LMHeadModel`` with the shape, the weights and the device of ``model``; dropout 0, SDPA attention."""
    import transformers

    transformers.logging.set_verbosity_error()
    config = model.config
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=model.vocab_size,
            n_positions=config.max_positions,
            n_embd=config.d_model,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_inner=config.d_mlp,
            activation_function=ACTIVATIONS[config.activation],
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="sdpa",
        )
    )
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            ours = model.get_parameter(our_name(name))
            transposed = ".c_" in name and ours.ndim == 2  # Conv1D keeps matrices transposed
            parameter.copy_(ours.T if transposed else ours)
    return theirs.to(model.token_embedding.weight.device)


def our_name(gpt2_name: str) -> str:
    """The name in our decoder of a parameter of GPT-2."""
    name = gpt2_name.removeprefix("transformer.").replace("h.", "blocks.")
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


class Loop:
    """A plain training loop: autocast, loss, backward, clipping, fused AdamW.

    loss_of(model, input_ids, labels): the loss of a batch; ``labels`` are our next tokens, already shifted.
    """

    def __init__(
        self, model: nn.Module, loss_of: Callable[[Any, Tensor, Tensor], Tensor], *, bf16: bool, compiled: bool
    ) -> None:
        self._model = model.train()
        self._forward: Any = torch.compile(model) if compiled else model
        self._loss_of, self._bf16 = loss_of, bf16
        matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
        vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=1e-4,
            betas=(0.9, 0.95),
            fused=True,
        )

    def step(self, input_ids: Tensor, labels: Tensor) -> None:
        """One optimizer step on rows that are on the model's device."""
        with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=self._bf16):
            loss = self._loss_of(self._forward, input_ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


def causal_loss(model: Any, input_ids: Tensor, labels: Tensor) -> Tensor:
    """The loss of GPT2LMHeadModel for pretraining rows without pauses: it shifts by itself, every token is a target."""
    loss: Tensor = model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
    return loss
