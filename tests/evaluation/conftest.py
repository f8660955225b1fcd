import pytest

from fss_svf.training.pretrain import pretrain
from fss_svf.training.train import train
from tests.methods.test_bam import bam_config
from tests.training.test_training import pretrain_config


@pytest.fixture(scope="session")
def bam_run(toy_root, tmp_path_factory):
    """A run of BAM on the toy dataset; its base learner's is `base` beside it. Only to be read."""
    folder = tmp_path_factory.mktemp("bam")
    pretrain(pretrain_config(toy_root), folder / "base")
    train(bam_config(toy_root, folder / "base"), folder / "run")
    return folder / "run"
