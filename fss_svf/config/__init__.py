"""The one door between YAML and code: plain mappings go in, checked dataclasses come out.

Beyond this package nobody sees a DictConfig.

mapping   a mapping as a dataclass, and back
checks    of values that several dataclasses share
recipe    how to train
protocol  how a number is measured
training  the configs of the verbs that make a training
verbs     the configs of the other verbs
"""

from fss_svf.config.checks import FoldNumber, check_fold, check_size, require
from fss_svf.config.mapping import from_mapping, modules_of, to_mapping
from fss_svf.config.protocol import EpisodeFiles, Protocol
from fss_svf.config.recipe import Augment, Optimizer, Recipe, Schedule
from fss_svf.config.training import (
    MACHINE,
    FeaturesDtype,
    ImportConfig,
    LoggerName,
    OfficialBaseLearner,
    Precision,
    PretrainConfig,
    TrainConfig,
    Validation,
    differing,
)
from fss_svf.config.verbs import (
    Choosing,
    CompareConfig,
    DemoConfig,
    EvaluateConfig,
    InfoConfig,
    ModelsConfig,
    PredictConfig,
    PrepareConfig,
    ReportConfig,
    ReportFormat,
    ReproduceConfig,
    Row,
    Table,
    WayRule,
)

__all__ = [
    "MACHINE",
    "Augment",
    "Choosing",
    "CompareConfig",
    "DemoConfig",
    "EpisodeFiles",
    "EvaluateConfig",
    "FeaturesDtype",
    "FoldNumber",
    "ImportConfig",
    "InfoConfig",
    "LoggerName",
    "ModelsConfig",
    "OfficialBaseLearner",
    "Optimizer",
    "Precision",
    "PredictConfig",
    "PrepareConfig",
    "PretrainConfig",
    "Protocol",
    "Recipe",
    "ReportConfig",
    "ReportFormat",
    "ReproduceConfig",
    "Row",
    "Schedule",
    "Table",
    "TrainConfig",
    "Validation",
    "WayRule",
    "check_fold",
    "check_size",
    "differing",
    "from_mapping",
    "modules_of",
    "require",
    "to_mapping",
]
