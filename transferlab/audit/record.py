"""What an audit leaves behind: a table of findings, one of leaks, the record, the figures."""

from dataclasses import dataclass, field, fields
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ..artifacts import write_figure, write_table, write_text, write_together
from ..machine import Machine
from ..records import RunRecord, data_info, to_json
from .figures import plot_audit, plot_suspects
from .findings import Finding
from .labels import PlantedCheck
from .leaks import LeakTest
from .result import SEED, AuditResult


@dataclass(frozen=True, kw_only=True)
class AuditRecord(RunRecord):
    """What an audit saw and with which backbone: what its tables do not hold."""

    kind: str = "audit"
    class_sizes: dict[str, int]
    counts: dict[str, int]  # findings of each kind
    serious: dict[str, int]  # serious ones of each kind
    out_of_fold_accuracy: float | None  # None: labels were not checked
    suspects: int
    planted: PlantedCheck | None
    leaks: tuple[LeakTest, ...]
    part_sizes: dict[str, dict[str, int]] = field(default_factory=dict)  # {"test": class sizes}
    look_alikes: int = 0  # pairs with like hashes whose pixels or colours differ


def finding_table(audit: AuditResult) -> pd.DataFrame:
    """The findings, a row each."""
    columns = [one.name for one in fields(Finding)]
    return pd.DataFrame(audit.findings, columns=columns)


def leak_table(audit: AuditResult) -> pd.DataFrame:
    """The accuracies behind the leak report, a row a repeat."""
    rows = []
    for leak in audit.leaks:
        for repeat, random in enumerate(leak.random):
            row = {
                "data": audit.image_set.digest,
                "model": audit.weights.timm_name,
                "weights": audit.weights.source,
                "grouping": leak.grouping,
                "images": leak.images,
                "groups": leak.groups,
                "folds": leak.folds,
                "repeat": repeat,
                "random": random,
                "grouped": leak.grouped[repeat],
            }
            rows.append(row)
    return pd.DataFrame(rows)


def make_record(audit: AuditResult, machine: Machine, stamp: str) -> AuditRecord:
    """The record of an audit."""
    check = audit.labels
    data = data_info(audit.image_set, audit.features.augmentation)
    return AuditRecord(
        stamp=stamp,
        data=(data,),
        weights=(audit.weights,),
        machine=machine,
        seed=SEED,
        class_sizes=audit.class_sizes,
        counts=dict(audit.counts),
        serious=dict(audit.serious),
        out_of_fold_accuracy=check.accuracy if check else None,
        suspects=len(check.suspects) if check else 0,
        planted=check.planted if check else None,
        leaks=audit.leaks,
        part_sizes=audit.part_sizes,
        look_alikes=audit.look_alikes,
    )


def keep_figure(path: Path, figure: plt.Figure) -> Path:
    """Writes a figure as PNG and closes it."""
    try:
        return write_figure(path, figure, tight=True)
    finally:
        plt.close(figure)


def write_drafts(
    tables: Path, figures: Path, audit: AuditResult, machine: Machine, stamp: str
) -> list[Path]:
    """Writes findings, leak accuracies, the figure, the contact sheet and the record into two
    hidden folders -> their paths, the record's last."""
    drafts = [write_table(tables / f"audit_findings_{stamp}.csv", finding_table(audit))]
    if audit.leaks:
        drafts.append(write_table(tables / f"audit_leak_{stamp}.csv", leak_table(audit)))
    drafts.append(keep_figure(figures / f"audit_{stamp}.png", plot_audit(audit)))
    check = audit.labels
    if check is not None and len(check.suspects):
        sheet = plot_suspects(audit, check)
        drafts.append(keep_figure(figures / f"audit_labels_{stamp}.png", sheet))
    record = make_record(audit, machine, stamp)
    return [*drafts, write_text(tables / f"audit_summary_{stamp}.json", to_json(record))]


def write_audit(out: Path, audit: AuditResult, machine: Machine) -> list[Path]:
    """Writes all files of an audit or none -> their paths.

    Raises:
        UserError: as `write_together`.
    """

    def write(tables: Path, figures: Path, stamp: str) -> list[Path]:
        return write_drafts(tables, figures, audit, machine, stamp)

    return write_together(out, write)
