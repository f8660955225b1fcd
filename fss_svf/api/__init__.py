"""The Python API: what the command line does, by names and keyword options (docs/python.md).

choosing    names and options as a verb's config
data        a dataset, a fold, its episodes
models      a backbone, a model, that of a checkpoint
training    train
evaluation  evaluate, of any model of episodes
"""

from fss_svf.api.data import Episodes, LoadedDataset, LoadedFold, episodes, load_dataset
from fss_svf.api.evaluation import evaluate
from fss_svf.api.models import build_backbone, build_model, load_model
from fss_svf.api.training import train

__all__ = [
    "Episodes",
    "LoadedDataset",
    "LoadedFold",
    "build_backbone",
    "build_model",
    "episodes",
    "evaluate",
    "load_dataset",
    "load_model",
    "train",
]
