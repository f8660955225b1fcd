"""Which Linear layers make the queries, keys and values of an attention: all three in one layer, or one layer each."""

from __future__ import annotations

from torch import Tensor, nn

PARTS = ("q", "k", "v")
# Three layers of their own, by the names of timm, of Hugging Face's vision transformers, and of diffusion models.
_SEPARATE = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"), ("to_q", "to_k", "to_v"))
# Modules of timm whose qkv has the rows of a head together, not those of all queries, all keys and all values.
_BY_HEAD = ("timm.models.tiny_vit", "timm.models.efficientformer")


def attention_layers(module: nn.Module) -> dict[int, str]:
    """The layers of all attentions in `module` by identity: "q", "k", "v", or "qkv" for one layer of all three.

    A qkv layer (3 C, in) has the C rows of the queries first, then those of the keys and of the values: timm's ViT, EVA,
    BEiT, Swin and others. One whose rows stand in another order (tiny_vit, efficientformer, MaxViT's heads first), or that
    makes other than three of the width that the attention's output layer takes, is not in the result.
    """
    found: dict[int, str] = {}
    for parent in module.modules():
        children = {name: child for name, child in parent.named_children() if isinstance(child, nn.Linear)}
        qkv = children.get("qkv")
        if qkv is not None and _has_three(parent, qkv, children):
            found[id(qkv)] = "qkv"
        for names in _SEPARATE:
            if all(name in children for name in names):
                found |= {id(children[name]): part for name, part in zip(names, PARTS)}
    return found


def rows_of(weight: Tensor, part: str) -> Tensor:
    """The rows of a part in the weight (3 C, in) or bias (3 C,) of a qkv layer: a view of (C, in) or (C,)."""
    size = weight.shape[0] // 3
    return weight.narrow(0, PARTS.index(part) * size, size)


def _has_three(parent: nn.Module, qkv: nn.Linear, children: dict[str, nn.Linear]) -> bool:
    if getattr(parent, "head_first", False) or type(parent).__module__ in _BY_HEAD:
        return False
    return any(child is not qkv and 3 * child.in_features == qkv.out_features for child in children.values())
