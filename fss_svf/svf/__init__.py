"""Singular Value Fine-tuning for any nn.Module: train only the singular values of its weights.

    from fss_svf import svf

    model = svf.decompose(model, include=[r"^layer[234]"])   # exact: the outputs stay what they were
    ... train the parameters svf.singular_values(model) ...
    svf.save_adapter(model, "adapter.safetensors")           # some 50 kB for a ResNet-50
    svf.merge(model)                                         # plain convolutions again, for inference

Source: Singular Value Fine-tuning, NeurIPS 2022 (arXiv 2206.06122), section 3. This folder knows nothing of segmentation.
"""

from fss_svf.svf.adapter import (
    AdapterError,
    adapter_state_dict,
    base_hash,
    load_adapter,
    load_adapter_state_dict,
    save_adapter,
)
from fss_svf.svf.decompose import decompose, disabled, layers, merge, plain_copy, report, singular_values, unmerge
from fss_svf.svf.layers import SVFConv2d, SVFLayer, SVFLinear

__all__ = [
    "AdapterError",
    "SVFConv2d",
    "SVFLayer",
    "SVFLinear",
    "adapter_state_dict",
    "base_hash",
    "decompose",
    "disabled",
    "layers",
    "load_adapter",
    "load_adapter_state_dict",
    "merge",
    "plain_copy",
    "report",
    "save_adapter",
    "singular_values",
    "unmerge",
]
