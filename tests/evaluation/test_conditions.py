"""What a protocol asks of a checkpoint, and of the interval of its number."""

import logging

import pytest

from fss_svf.errors import ConfigError
from fss_svf.evaluation.conditions import SELECTED_ON_NOVEL, require_conditions, require_shots, warn_of_width
from tests.cli.test_cli import SMALL, one_line
from tests.cli.test_config import compose
from tests.methods import test_methods


def checkpoint(shot=1, selection="last step"):
    return {"path": "RUN/best.pt", "shot": shot, "selection": selection}


def protocol(name="svf", *changes):
    return compose("train", f"protocol={name}", *changes).protocol


def test_a_checkpoint_selected_on_the_novel_classes():
    chosen = checkpoint(selection=SELECTED_ON_NOVEL)
    with pytest.raises(
        ConfigError, match=r"protocol=strict: checkpoint=RUN/best.pt .* last.pt, or train with validate"
    ):
        require_conditions(protocol("strict"), (1,), chosen)
    require_conditions(protocol(), (1,), chosen)
    for selection in ("last step", "best mIoU on base classes held out"):
        require_conditions(protocol("strict"), (1,), checkpoint(selection=selection))


def test_strict_refuses_best_of_a_training_and_takes_last(fss, toy_root, tmp_path):
    assert fss("train", *SMALL, f"dataset.root={toy_root}")[0] == 0
    folder = next(tmp_path.glob("outputs/train/*/*")) / "checkpoints"
    evaluate = ("evaluate", "protocol=strict", "protocol.episodes=10", "workers=0", "pictures=0")
    status, _, err = fss(*evaluate, f"checkpoint={folder / 'best.pt'}")
    assert status == 1
    assert "protocol.selection=not_novel refuses" in one_line(err)
    status, out, err = fss(*evaluate, f"checkpoint={folder / 'last.pt'}")
    assert status == 0, err
    assert "Protocol strict" in out


@pytest.mark.parametrize(
    ("name", "trained", "shots", "told"),
    [
        ("svf", 1, (1,), None),
        ("svf", 5, (5,), None),
        ("svf", 1, (1, 5), "trained at 1-shot, evaluated at 5-shot: "),
        ("bam", 5, (1, 2), "trained at 5-shot, evaluated at 1-shot, 2-shot: "),
        ("pfenet", 1, (1, 5), None),  # averages: one model for all K
        ("panet", 1, (5,), None),
    ],
)
def test_another_k_than_in_training_is_told_once(caplog, name, trained, shots, told):
    with caplog.at_level(logging.WARNING):
        require_conditions(protocol(name), shots, checkpoint(trained))
        require_conditions(protocol(name), shots, None)  # nothing was trained
    assert len(caplog.records) == (told is not None)
    assert (told or "") in caplog.text


def test_a_vote_is_of_one_class():
    model = test_methods.model("panet")
    require_shots(protocol("hsnet"), (1, 5), model, way=1)
    with pytest.raises(ConfigError, match=r"protocol=hsnet: protocol.shots=vote is of one class, got way=2; say"):
        require_shots(protocol("hsnet"), (1,), model, way=2)


def test_a_vote_and_a_mean_need_no_weights_for_the_shots():
    model = test_methods.model("bam", shot=1)
    for name in ("hsnet", "pfenet"):
        require_shots(protocol(name), (1, 5), model, way=1)
    with pytest.raises(ConfigError, match=r"shot=5: this BAM was trained at 1 shot"):
        require_shots(protocol("bam"), (1, 5), model, way=1)


def result(low, high, **protocol):
    return {
        "shot": 1, "num_episodes": 5000, "seeds": [0, 1], "interval": {"miou": [low, high]},
        "protocol": {"classes": "novel", **protocol},
    }  # fmt: skip


def test_a_wider_interval_than_asked_is_told_with_the_episodes_it_takes(caplog):
    with caplog.at_level(logging.WARNING):
        for found, half_width in ((result(0.5, 0.519), 0.01), (result(0.5, 0.9), None)):
            warn_of_width(found, half_width)
        assert not caplog.records
        warn_of_width(result(0.5, 0.54), 0.01)
    assert "mIoU +- 2.00, and the protocol asks for 1.00: about 20,000 episodes are needed" in caplog.text


def test_a_whole_list_takes_more_runs(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_width(result(0.5, 0.53, classes="all"), 0.01)  # 2 x 1.5^2
    assert "about 5 runs are needed (seeds)" in caplog.text
    assert "protocol.episodes" not in caplog.text
