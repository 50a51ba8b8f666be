"""Attention, transformers, and modules that take several inputs."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes import control
from tests.measure.awkward_case import F64, Case, Net, matrix, normal, number, tokens

__all__ = ["CASES"]

Parts = dict[str, nn.Module | Tensor]


def draw(n: int, *shape: int) -> Tensor:
    return torch.randn(n, *shape, dtype=F64, generator=torch.Generator().manual_seed(n + 100))


def lengths(n: int, length: int) -> Tensor:
    """Masks (n, length) of sequences of different lengths, true where there is a token; each has one."""
    return torch.arange(length) <= (torch.arange(n) * 2 % length)[:, None]


# nn.MultiheadAttention


def self_attention(net: Any, x: Tensor) -> Tensor:
    return net.out(net.attention(x, x, x, need_weights=False)[0].flatten(1))


def with_weights(net: Any, x: Tensor) -> Tensor:
    mixed, weights = net.attention(x, x, x, average_attn_weights=False)
    return net.out(mixed.mean(1)) + weights.flatten(1)[:, :2]


def time_first(net: Any, x: Tensor) -> Tensor:
    x = x.transpose(0, 1)
    return net.out(net.attention(x, x, x)[0]).sum(0)


def causal(net: Any, x: Tensor) -> Tensor:
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
    return net.out(net.attention(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0][:, -1])


def cross(net: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return net.out(net.attention(query, key, value)[0].flatten(1))


def padded(net: Any, x: Tensor, mask: Tensor) -> Tensor:
    mixed, _ = net.attention(x, x, x, key_padding_mask=~mask)
    return net.out((mixed * mask[:, :, None]).sum(1))


def three(n: int) -> tuple[Tensor, Tensor, Tensor]:
    return draw(n, 2, 4), draw(n, 3, 2), draw(n, 3, 3)


def with_mask(n: int) -> dict[str, Tensor]:
    return {"x": draw(n, 3, 4), "mask": lengths(n, 3)}


MULTIHEAD: dict[str, Case] = {
    "attention": Case(
        lambda: nn.Sequential(
            nn.Unflatten(1, (2, 2)),
            Net(self_attention, attention=nn.MultiheadAttention(2, 1, batch_first=True), out=nn.Linear(4, 1)),
        )
    ),
    "attention with heads": Case(
        lambda: Net(
            self_attention,
            attention=nn.MultiheadAttention(4, 2, bias=False, batch_first=True),
            out=nn.Linear(12, 2),
        ),
        normal(3, 4),
    ),
    "attention and its weights": Case(
        lambda: Net(
            with_weights, attention=nn.MultiheadAttention(4, 2, batch_first=True), out=nn.Linear(4, 2)
        ),
        normal(3, 4),
    ),
    "attention, time first": Case(
        lambda: Net(time_first, attention=nn.MultiheadAttention(4, 2), out=nn.Linear(4, 2)), normal(5, 4)
    ),
    "causal attention": Case(
        lambda: Net(causal, attention=nn.MultiheadAttention(4, 2, batch_first=True), out=nn.Linear(4, 2)),
        normal(3, 4),
    ),
    "cross attention": Case(
        lambda: Net(
            cross,
            attention=nn.MultiheadAttention(4, 2, kdim=2, vdim=3, batch_first=True),
            out=nn.Linear(8, 2),
        ),
        three,
    ),
    "cross attention of one width": Case(
        lambda: Net(
            cross,
            attention=nn.MultiheadAttention(2, 1, add_bias_kv=True, add_zero_attn=True, batch_first=True),
            out=nn.Linear(4, 2),
        ),
        lambda n: (draw(n, 2, 2), draw(n, 3, 2), draw(n, 3, 2).square()),
    ),
    "padded attention": Case(
        lambda: Net(padded, attention=nn.MultiheadAttention(4, 2, batch_first=True), out=nn.Linear(4, 2)),
        with_mask,
    ),
}

# Attention written out


def fused_projection(net: Any, x: Tensor) -> Tensor:
    """One projection for query, key and value, then fused attention in two heads."""
    n, t, d = x.shape
    q, k, v = net.qkv(x).view(n, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
    h = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return net.out(net.proj(h.transpose(1, 2).reshape(n, t, d)).mean(1))


def shared_keys(net: Any, x: Tensor) -> Tensor:
    """Two heads of queries for one of keys and values."""
    n, t, _ = x.shape
    q = net.q(x).view(n, t, 2, 2).transpose(1, 2)
    k, v = net.k(x)[:, None], net.v(x)[:, None]
    h = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return net.out(h.transpose(1, 2).reshape(n, -1))


def relative_positions(net: Any, x: Tensor) -> Tensor:
    """Scores with a bias for each distance, from a table that is indexed, and a trained temperature."""
    q, k, v = net.q(x), net.k(x), net.v(x)
    places = torch.arange(x.shape[1])
    bias = net.table[places[:, None] - places + x.shape[1] - 1]
    scores = torch.einsum("nsd,ntd->nst", q, k) * net.t.exp() + bias
    return net.out((scores.softmax(-1) @ v).flatten(1))


def rotated(net: Any, x: Tensor) -> Tensor:
    """Rotary positions, from buffers."""
    cos, sin = net.cos[: x.shape[1]], net.sin[: x.shape[1]]

    def turn(h: Tensor) -> Tensor:
        left, right = h.chunk(2, -1)
        return h * cos + torch.cat([-right, left], -1) * sin

    h = functional.scaled_dot_product_attention(turn(net.q(x)), turn(net.k(x)), net.v(x))
    return net.out(h[:, -1])


def linear_attention(net: Any, x: Tensor) -> Tensor:
    q, k, v = functional.elu(net.q(x)) + 1, functional.elu(net.k(x)) + 1, net.v(x)
    mixed = torch.einsum("ntd,nte->nde", k, v)
    return net.out((q @ mixed / (q @ k.sum(1)[:, :, None])).flatten(1))


def vision(net: Any, x: Tensor) -> Tensor:
    """A small vision transformer: patches, a class token, positions cut to length, a scaled branch."""
    patches = net.patch(x).flatten(2).transpose(1, 2)
    h = torch.cat([net.cls_token.expand(len(x), -1, -1), patches], 1)
    h = h + net.pos_embed[:, : h.shape[1]]
    z = net.norm(h)
    h = h + net.gamma * net.attention(z, z, z, need_weights=False)[0]
    return net.out(h[:, 0])


def qkv(width: int, keys: int) -> Parts:
    return {"q": nn.Linear(width, 4), "k": nn.Linear(width, keys), "v": nn.Linear(width, keys)}


def angles() -> Tensor:
    return torch.arange(4.0)[:, None] * torch.tensor([1.0, 0.3, 1.0, 0.3])


WRITTEN: dict[str, Case] = {
    "fused projection": Case(
        lambda: Net(fused_projection, qkv=nn.Linear(4, 12), proj=nn.Linear(4, 4), out=nn.Linear(4, 2)),
        normal(3, 4),
    ),
    "shared keys": Case(lambda: Net(shared_keys, **qkv(3, 2), out=nn.Linear(12, 2)), normal(3, 3)),
    "relative positions": Case(
        lambda: Net(relative_positions, **qkv(2, 4), table=matrix(5), t=number(0.1), out=nn.Linear(12, 2)),
        normal(3, 2),
    ),
    "rotary positions": Case(
        lambda: Net(rotated, **qkv(3, 4), cos=angles().cos(), sin=angles().sin(), out=nn.Linear(4, 2)),
        normal(3, 3),
    ),
    "linear attention": Case(lambda: Net(linear_attention, **qkv(2, 4), out=nn.Linear(12, 2)), normal(3, 2)),
    "vision transformer": Case(
        lambda: Net(
            vision,
            patch=nn.Conv2d(1, 4, 2, stride=2),
            cls_token=matrix(1, 1, 4),
            pos_embed=matrix(1, 6, 4),
            norm=nn.LayerNorm(4),
            attention=nn.MultiheadAttention(4, 2, batch_first=True),
            gamma=matrix(4),
            out=nn.Linear(4, 3),
        ),
        normal(1, 4, 4),
    ),
}

# Whole transformers


def encoder_layer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(4, 2, 3, batch_first=True, **options)


def read_mean(net: Any, x: Tensor) -> Tensor:
    return net.out(net.body(x).mean(1))


def read_masked(net: Any, x: Tensor, mask: Tensor) -> Tensor:
    h = net.body(x, src_key_padding_mask=~mask)
    return net.out((h * mask[:, :, None]).sum(1))


def decode(net: Any, x: Tensor, memory: Tensor) -> Tensor:
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
    return net.out(net.body(x, memory, tgt_mask=mask)[:, -1])


def encoder(layers: int) -> nn.Module:
    return nn.TransformerEncoder(encoder_layer(), layers, enable_nested_tensor=False).eval()


def frozen_encoder() -> nn.Module:
    return Net(read_masked, body=encoder(1).requires_grad_(False), out=nn.Linear(4, 2)).eval()


TRANSFORMERS: dict[str, Case] = {
    "encoder layer": Case(
        lambda: Net(read_mean, body=encoder_layer(), out=nn.Linear(4, 2)).eval(), normal(3, 4)
    ),
    "encoder layer, norm first": Case(
        lambda: Net(
            read_mean, body=encoder_layer(norm_first=True, activation="gelu"), out=nn.Linear(4, 2)
        ).eval(),
        normal(3, 4),
    ),
    "encoder of two layers": Case(
        lambda: Net(read_mean, body=encoder(2), out=nn.Linear(4, 2)).eval(), normal(3, 4)
    ),
    "padded encoder": Case(lambda: Net(read_masked, body=encoder(1), out=nn.Linear(4, 2)).eval(), with_mask),
    "frozen encoder": Case(frozen_encoder, with_mask),
    "decoder layer": Case(
        lambda: Net(
            decode, body=nn.TransformerDecoderLayer(4, 2, 3, batch_first=True), out=nn.Linear(4, 2)
        ).eval(),
        lambda n: (draw(n, 2, 4), draw(n, 3, 4)),
    ),
}

# Several inputs


class Output(OrderedDict[str, Any]):
    """A result with attributes and keys, some of them empty."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def classify(
    net: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    return_dict: bool = True,
) -> Any:
    """A small BERT: words, positions and types, masked attention, the first token read."""
    places = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
    h = net.norm(net.words(input_ids) + net.places(places) + net.types(types))
    q, k, v = net.q(h), net.k(h), net.v(h)
    mask = None
    if attention_mask is not None and not bool((attention_mask == 1).all()):
        mask = (1 - attention_mask[:, None, :].to(h)) * torch.finfo(h.dtype).min
    h = functional.scaled_dot_product_attention(q, k, v, mask)
    pooled = net.pooler(h[:, 0]).tanh()
    logits = net.out(pooled)
    return Output(loss=None, logits=logits, hidden_states=h) if return_dict else (logits, h)


def generate(net: Any, input_ids: Tensor) -> Any:
    """A small GPT-2: addmm for linear layers, causal attention, a head tied to the words."""
    h = net.wte(input_ids) + net.wpe(torch.arange(input_ids.shape[1], device=input_ids.device))
    rows = torch.addmm(net.b, net.norm(h).view(-1, 4), net.w).view(*h.shape[:2], 12)
    q, k, v = rows.chunk(3, -1)
    h = h + functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return SimpleNamespace(logits=functional.linear(h, net.wte.weight))


def conditioned(net: Any, x: Tensor, context: Tensor) -> Tensor:
    gain, shift = net.film(context).chunk(2, 1)
    return net.out((net.a(x) * gain + shift).tanh())


def with_flags(net: Any, x: Tensor, context: Tensor | None, double: bool) -> Tensor:
    assert context is None
    return net.out(net.a(x).tanh() * (2 if double else 1))


def graph(net: Any, nodes: Tensor, edges: Tensor) -> Tensor:
    h = (net.a(nodes) + edges @ net.b(nodes)).relu()
    return net.out((net.a2(h) + edges @ net.b2(h)).tanh().sum(1))


def bert() -> nn.Module:
    parts = {name: nn.Linear(4, 4) for name in ("q", "k", "v", "pooler")}
    words = nn.Embedding(5, 4, padding_idx=0)
    places, types = nn.Embedding(3, 4), nn.Embedding(2, 4)
    norm, out = nn.LayerNorm(4), nn.Linear(4, 3)
    return Net(classify, words=words, places=places, types=types, norm=norm, **parts, out=out)


def gpt() -> nn.Module:
    return Net(
        generate,
        wte=nn.Embedding(5, 4),
        wpe=nn.Embedding(3, 4),
        norm=nn.LayerNorm(4),
        w=matrix(4, 12),
        b=matrix(12),
    )


def sentences(n: int) -> dict[str, Tensor]:
    return {"input_ids": tokens(3, 5)(n), "attention_mask": lengths(n, 3).long()}


def optional_entries(n: int) -> dict[str, Any]:
    return {**sentences(n), "token_type_ids": None, "return_dict": False}


def film() -> nn.Module:
    return Net(conditioned, a=nn.Linear(4, 3), film=nn.Linear(2, 6), out=nn.Linear(3, 2))


SEVERAL: dict[str, Case] = {
    "bert": Case(bert, sentences, lambda out: out.logits),
    "bert with empty entries": Case(bert, optional_entries, lambda out: out[0]),
    "bert without padding": Case(bert, lambda n: {"input_ids": tokens(3, 5)(n)}, lambda out: out["logits"]),
    "gpt": Case(gpt, tokens(3, 5), lambda out: out.logits[:, -1]),
    "tuple": Case(film, lambda n: (draw(n, 4), draw(n, 2))),
    "list": Case(film, lambda n: [draw(n, 4), draw(n, 2)]),
    "expanded context": Case(film, lambda n: (draw(n, 4), draw(1, 2).expand(n, -1))),
    "tuple with flags": Case(
        lambda: Net(with_flags, a=nn.Linear(4, 3), out=nn.Linear(3, 1)), lambda n: (draw(n, 4), None, True)
    ),
    "scaled dict": Case(
        lambda: control.scale(film(), alpha=2.0), lambda n: {"context": draw(n, 2), "x": draw(n, 4)}
    ),
    "dict": Case(film, lambda n: {"context": draw(n, 2), "x": draw(n, 4)}),
    "graph": Case(
        lambda: Net(
            graph,
            a=nn.Linear(2, 3),
            b=nn.Linear(2, 3, bias=False),
            a2=nn.Linear(3, 3),
            b2=nn.Linear(3, 3, bias=False),
            out=nn.Linear(3, 2),
        ),
        lambda n: {"nodes": draw(n, 5, 2), "edges": (draw(n, 5, 5) > 0).double()},
    ),
    "bilinear of two": Case(lambda: nn.Bilinear(2, 3, 2), lambda n: (draw(n, 2), draw(n, 3))),
}

CASES: dict[str, Case] = {**MULTIHEAD, **WRITTEN, **TRANSFORMERS, **SEVERAL}
