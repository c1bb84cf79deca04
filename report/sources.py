"""What the report is made from: all that its templates may speak of, read from the files that
report/runs.toml names, each checked against what it was itself made from."""

from dataclasses import dataclass
from pathlib import Path

from comparisons import BothHeads, read_both_heads
from measured import (
    Benchmark,
    EnoughViews,
    Peers,
    read_benchmark,
    read_enough_views,
    read_peers,
)
from named import ROOT, Named, read_named_files
from runs import (
    PublishedFigure,
    Run,
    SplitTest,
    compare_on_split,
    majority_share,
    read_published,
    read_runs,
)
from technique_results import Techniques, read_techniques

from transferlab.audit.record import AuditRecord
from transferlab.datasets import FACES, INSECTS
from transferlab.published import read_record


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the templates may speak of; what is not named is None."""

    root: Path  # of the repository
    runs: dict[str, Run]  # by backbone, in reading order
    figures: dict[str, str]  # {"01/img/resnet50_combined": path}
    on_split: SplitTest
    majority: float  # the share of the most frequent class of ResNet50's validation images
    published: tuple[PublishedFigure, ...]
    compared_faces: BothHeads | None
    compared_insects: BothHeads | None
    audit_faces: AuditRecord | None
    audit_insects: AuditRecord | None
    views: Benchmark | None
    enough_views: EnoughViews | None
    engine: Benchmark | None
    findings: Benchmark | None
    domain_gap: Benchmark | None
    roofline: Benchmark | None
    scaling: Benchmark | None
    peers: Peers | None
    peer_seeds: Benchmark | None
    techniques: Techniques | None
    techniques_gpu: Techniques | None


def read_audit(named: Named, data: str) -> AuditRecord | None:
    """A named audit of one dataset; None where none is named."""
    place = f"audit/{data}"
    if not named.has(place, "summary/audit"):
        return None
    return read_record(named.file(place, "summary/audit"), AuditRecord)


def load_context(root: Path = ROOT) -> Context:
    """All that the templates may speak of.

    Raises:
        SystemExit: a file is missing, has changed, or says otherwise than what it was made from.
    """
    named = read_named_files(root)
    runs = read_runs(named)
    resnet = runs["resnet50"].record
    densenet = runs["densenet121"].record
    return Context(
        root=root,
        runs=runs,
        figures=named.figures(),
        on_split=compare_on_split(resnet, densenet),
        majority=majority_share(resnet),
        published=read_published(runs, root),
        compared_faces=read_both_heads(named, FACES.name),
        compared_insects=read_both_heads(named, INSECTS.name),
        audit_faces=read_audit(named, FACES.name),
        audit_insects=read_audit(named, INSECTS.name),
        views=read_benchmark(named, "views"),
        enough_views=read_enough_views(named),
        engine=read_benchmark(named, "engine"),
        findings=read_benchmark(named, "findings"),
        domain_gap=read_benchmark(named, "domain_gap"),
        roofline=read_benchmark(named, "roofline"),
        scaling=read_benchmark(named, "scaling"),
        peers=read_peers(named),
        peer_seeds=read_benchmark(named, "peer_seeds"),
        techniques=read_techniques(named, "techniques"),
        techniques_gpu=read_techniques(named, "techniques_gpu"),
    )
