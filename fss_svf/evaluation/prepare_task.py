"""What every measurement does before its episodes run: refuse what cannot be measured, and put the task together.

`fss-svf evaluate` and the Python API call both functions, the first before the episodes are drawn.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from fss_svf.config import Protocol
from fss_svf.data.augment import EvalTransform
from fss_svf.data.dataset import Split
from fss_svf.data.fold import Fold
from fss_svf.evaluation.base_classes import require_base_classes
from fss_svf.evaluation.conditions import require_conditions, require_shots, warn_of_stretch
from fss_svf.evaluation.plan import Plan
from fss_svf.evaluation.subject import Subject, base_classes
from fss_svf.evaluation.task import EvaluationTask
from fss_svf.methods.method import FewShotMethod
from fss_svf.model import refuse_leak, seen_classes

log = logging.getLogger(__name__)


def check_subject(
    model: FewShotMethod, subject: Subject, fold: Fold, protocol: Protocol, shots: Sequence[int], source: str
) -> tuple[Subject, tuple[int, ...] | None]:
    """The subject, which names the novel classes of `fold` that it has seen under another dataset, and the base classes that
    are measured beside the novel ones; None where none are.

    source: what the model comes from, as an error names it. Raises WeightsError where it has seen novel classes, ConfigError
    where it cannot segment so many shots, or read images of that size, or is not what the protocol asks for.
    """
    trained_on, novel, synonyms = subject.trained_on, fold.names(fold.novel), fold.options.synonyms
    if protocol.seen_classes == "count" and trained_on and trained_on["dataset"] != subject.dataset.name:
        seen = tuple(dict.fromkeys(name for _, name in seen_classes(trained_on, novel, fold.class_names, synonyms)))
        if seen:
            log.warning(
                "%s: trained on %s, which has %d of the %d tested classes too: %s; protocol.seen_classes=count counts them",
                *(source, trained_on["dataset"], len(seen), len(novel), ", ".join(seen)),
            )
        subject = replace(subject, classes_seen=seen)
    else:
        refuse_leak(trained_on, novel, source, fold.class_names, synonyms)
    model.check_size(subject.size, "size", protocol.resize == "squash")
    require_shots(protocol, shots, model, subject.way)
    require_base_classes(protocol, model, subject.method, subject.way)
    require_conditions(protocol, shots, subject.checkpoint)
    return subject, base_classes(model, subject, fold, protocol)


def make_task(
    model: FewShotMethod, subject: Subject, split: Split, fold: Fold, plan: Plan, base: tuple[int, ...] | None
) -> EvaluationTask:
    """The task of a placed model and the planned episodes. base: of check_subject."""
    protocol = plan.protocol
    warn_of_stretch(protocol, split.index.sizes, subject.size)
    transform = EvalTransform(subject.size, protocol.resize, protocol.pad)
    annotation, rule = fold.options.support_annotation, subject.way_rule
    return EvaluationTask(model, split, annotation, transform, protocol, plan.classes, base, rule)
