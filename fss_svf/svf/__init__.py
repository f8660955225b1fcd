"""Singular Value Fine-tuning for any nn.Module: train only the singular values of its weights.

    from fss_svf import svf

    model = svf.decompose(model, include=[r"^layer[234]"])   # exact: the outputs stay what they were
    ... train the parameters svf.trainable_parameters(model) ...
    print(svf.report(model))                                 # what moved, layer by layer
    svf.save_adapter(model, "adapter.safetensors")           # some 60 kB for a ResNet-50
    svf.merge(model)                                         # plain convolutions again, for inference

Source: Singular Value Fine-tuning, NeurIPS 2022 (arXiv 2206.06122), section 3. This folder knows nothing of segmentation.
docs/svf.md goes through all of it.
"""

from fss_svf.svf.adapter import AdapterError, adapter_state_dict, base_hash, load_adapter_state_dict
from fss_svf.svf.adapter_file import load_adapter, save_adapter
from fss_svf.svf.cache import default_cache
from fss_svf.svf.decompose import decompose, fit_ranks, layers, singular_values, trainable_parameters
from fss_svf.svf.layers import SVFConv2d, SVFLayer, SVFLinear
from fss_svf.svf.qkv import SVFQKV, SVFRows
from fss_svf.svf.rank import Energy, parse_ranks
from fss_svf.svf.report import LayerReport, Report, relative_drift, report
from fss_svf.tuned import disabled, merge, plain_copy, to_plain, unmerge

__all__ = [
    "SVFQKV",
    "AdapterError",
    "Energy",
    "LayerReport",
    "Report",
    "SVFConv2d",
    "SVFLayer",
    "SVFLinear",
    "SVFRows",
    "adapter_state_dict",
    "base_hash",
    "decompose",
    "default_cache",
    "disabled",
    "fit_ranks",
    "layers",
    "load_adapter",
    "load_adapter_state_dict",
    "merge",
    "parse_ranks",
    "plain_copy",
    "relative_drift",
    "report",
    "save_adapter",
    "singular_values",
    "to_plain",
    "trainable_parameters",
    "unmerge",
]
