"""Models of Hugging Face: their layers by depth, what is tied, and the hook that keeps all activations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from regimes import control
from regimes.core.error import UserError
from tests.control.sparse import RULES, SETTINGS, assert_same, loss_of, plain

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # theirs
IDS = torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(0))


def gpt2() -> nn.Module:
    import transformers

    sizes: dict[str, Any] = {"n_layer": 3, "n_embd": 8, "n_head": 2, "vocab_size": 11, "n_positions": 8}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))


def t5() -> nn.Module:
    import transformers

    sizes: dict[str, Any] = {
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 16,
        "num_layers": 2,
        "num_heads": 2,
        "vocab_size": 11,
    }
    tokens: dict[str, Any] = {"decoder_start_token_id": 0, "pad_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **tokens))


def bert() -> nn.Module:
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 11,
    }
    config = transformers.BertConfig(**sizes, intermediate_size=16, max_position_embeddings=8)
    return transformers.BertForSequenceClassification(config)


def build(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    module = {"gpt2": gpt2, "t5": t5, "bert": bert}[name]().eval().double()
    return module, {"input_ids": IDS} | ({"decoder_input_ids": IDS.flip(1)} if name == "t5" else {})


BLOCKS = {"gpt2": ["transformer.h.*"], "t5": ["encoder.block.*", "decoder.block.*"], "bert": ["*.layer.*"]}
LAYERS = {
    "gpt2": (
        "transformer.wte",
        "transformer.wpe",
        *(f"transformer.h.{n}" for n in range(3)),
        "transformer.ln_f",
    ),
    "t5": (
        *("encoder.embed_tokens", "encoder.block.0", "encoder.block.1", "encoder.final_layer_norm"),
        *("decoder.block.0", "decoder.block.1", "decoder.final_layer_norm"),
    ),
    "bert": (
        *(
            f"bert.embeddings.{each}"
            for each in ("word_embeddings", "token_type_embeddings", "position_embeddings")
        ),
        *("bert.embeddings.LayerNorm", "bert.encoder.layer.0", "bert.encoder.layer.1", "bert.pooler.dense"),
        "classifier",
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_layers_are_found_by_depth(name: str) -> None:
    """What is tied to the embedding (the head, the decoder's embedding) is at the bottom with it."""
    module, example = build(name)
    plan = control.layer_plan(module, control.UniformCut(), example=example, layers=BLOCKS[name])
    assert plan.layers == LAYERS[name]
    assert len(plan.parameters) == len(LAYERS[name])


@pytest.mark.parametrize("moves", [control.Cut(p=0.4, top=2), control.RandomLayers(2)], ids=repr)
@pytest.mark.parametrize("name", BLOCKS)
def test_a_loop_is_the_definition(name: str, moves: control.Moves) -> None:
    (module, x), (other, _) = build(name), build(name)
    optimizer = torch.optim.AdamW(module.parameters(), **SETTINGS["adamw"][1])
    policy = control.LayerwiseSparse(module, optimizer, moves, example=x, layers=BLOCKS[name])
    for _ in range(6):
        optimizer.zero_grad()
        loss_of(module(**x).logits).backward()
        optimizer.step()
    twin = Logits(other)
    plain(
        twin,
        lambda step: frozenset(f"model.{each}" for each in policy.plan(step)),
        [[x]] * 6,
        RULES["adamw"],
        SETTINGS["adamw"][1],
    )
    assert_same(module, other, 1e-9)


class Logits(nn.Module):
    """The scores alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.model(**inputs).logits


def test_the_hook_that_keeps_all_activations_is_named() -> None:
    module: Any
    module, x = build("gpt2")
    module.enable_input_require_grads()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(
        UserError, match=r"'transformer.wte' require grad where nothing moves.*disable_input_require_grads"
    ):
        control.LayerwiseSparse(module, optimizer, control.Fixed(top=1), example=x)
    module.disable_input_require_grads()
    control.LayerwiseSparse(module, optimizer, control.Fixed(top=1), example=x)
