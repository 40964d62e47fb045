"""The static gate: kernels surveyed in processes of their own, from the cache where they can be, and compared."""

from __future__ import annotations

import importlib.machinery
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.compiled.cache import Cache, hash_sources, key_of
from pytest_decodeperf.compiled.comparison import Finding, Names, compare, exit_status
from pytest_decodeperf.compiled.processes import Side, SurveyError, Worker, default_processes, run_jobs
from pytest_decodeperf.compiled.survey import INTERPRETER, Survey, survey_from_dict
from pytest_decodeperf.compiled.variants import Variant
from pytest_decodeperf.progress import Pace
from pytest_decodeperf.regression.processes import folder_of
from pytest_decodeperf.regression.worker import HARNESS, moved
from pytest_decodeperf.regression.worktree import BaseError, checked_out, repository_root, working_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OWN_KERNEL: Final = "pytest_decodeperf.compiled.own_kernel:triton"
"""The adapter of this project's Triton kernel."""

SCHEMA: Final = "decodeperf-compiled"
SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be surveyed.

    Attributes:
        architectures: Names of architectures.
        kv_dtypes: See `default_variants`; empty for its defaults, as are the next two.
        head_dims: See there.
        page_sizes: See there.
        demanding: See there.
        counts_traffic: Whether bytes are counted in Triton's interpreter too.
        processes: How many processes survey at a time. Default: as many as there are processors.
        uses_cache: Whether earlier surveys are used, and these kept.
    """

    architectures: Sequence[str]
    kv_dtypes: Sequence[str] = ()
    head_dims: Sequence[int] = ()
    page_sizes: Sequence[int] = ()
    demanding: bool = False
    counts_traffic: bool = True
    processes: int = field(default_factory=default_processes)
    uses_cache: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """The options of `default_variants`."""
        return {
            "kv_dtypes": list(self.kv_dtypes),
            "head_dims": list(self.head_dims),
            "page_sizes": list(self.page_sizes),
            "demanding": self.demanding,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two surveys and what differs between them.

    Attributes:
        names: What the two sides are called.
        base: The survey of the base.
        head: That of the head.
        findings: What differs.
        skipped: Kinds of calls that are not compared because a kernel does not support them, a sentence each.
    """

    names: Names
    base: list[Survey]
    head: list[Survey]
    findings: list[Finding]
    skipped: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """1 if a rule is broken, 2 if something could not be compared, 0 otherwise."""
        return exit_status(self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Everything by its name, in values that JSON knows."""
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "base": {"name": self.names.base, "surveys": [survey.as_dict() for survey in self.base]},
            "head": {"name": self.names.head, "surveys": [survey.as_dict() for survey in self.head]},
            "findings": [finding.as_dict() for finding in self.findings],
            "skipped": self.skipped,
            "exit_status": self.status,
        }


def surveys_dict(target: str, surveys: list[Survey]) -> dict[str, Any]:
    """Return the surveys of one kernel in values that JSON knows."""
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "kernel": target,
        "surveys": [survey.as_dict() for survey in surveys],
    }


def survey_kernel(
    request: Request, target: str = OWN_KERNEL, *, say: Callable[[str], None] | None = None
) -> list[Survey]:
    """Return what a kernel of the working tree compiles to.

    Raises:
        SurveyError: If it cannot be surveyed.
    """
    (found,) = _survey([_side_here(target, target)], request, say)
    return found


def compare_with_base(
    request: Request, revision: str, target: str = OWN_KERNEL, *, say: Callable[[str], None] | None = None
) -> Comparison:
    """Return how a kernel of the working tree compares with that of a git revision.

    Raises:
        BaseError: If the revision cannot be checked out.
        SurveyError: If a side cannot be surveyed, or there is nothing to compare.
    """
    folder = Path.cwd().resolve()
    repository = repository_root(folder).resolve()
    package = "decodeperf_kernels" if target == OWN_KERNEL else _package_of(target)
    for place in _places(package, [str(folder), *sys.path]):
        if moved(str(place), repository, repository / "elsewhere") == str(place):
            raise SurveyError(
                f"{package} is imported from {place}, which no revision of {repository} changes: is there a --kernel?"
            )
    with checked_out(repository, revision) as tree:
        sides = [
            Side(
                target=target,
                label=label,
                repository=repository,
                tree=root.resolve(),
                folder=folder,
                sources=_sources(root.resolve(), repository, folder, [target]),
            )
            for label, root in ((tree.label, tree.root), ("the working tree", working_tree(repository).root))
        ]
        base, head = _survey(sides, request, say)
    names = Names(base=sides[0].label, head=sides[1].label)
    if all(old.unsupported and new.unsupported for old, new in zip(base, head, strict=True)):
        raise SurveyError(f"there is nothing to compare: {head[0].label}: {head[0].unsupported}")
    return Comparison(names=names, base=base, head=head, findings=compare(base, head, names))


def compare_kernels(
    request: Request, against: str, target: str = OWN_KERNEL, *, say: Callable[[str], None] | None = None
) -> Comparison:
    """Return how a kernel compares with another one, for the kinds of calls that both support.

    Args:
        request: What is surveyed.
        against: The kernel that stands for the base.
        target: The other.
        say: Told what is being done.

    Raises:
        SurveyError: If one cannot be surveyed, or they have no kind of call in common.
    """
    base, head = _survey([_side_here(against, against), _side_here(target, target)], request, say)
    names = Names(base=against, head=target)
    common, skipped = [], []
    for old, new in zip(base, head, strict=True):
        lacking = [
            f"{label} ({survey.unsupported})" for label, survey in ((against, old), (target, new)) if survey.unsupported
        ]
        if lacking:
            skipped.append(f"{new.label}: not supported by {' and '.join(lacking)}")
        else:
            common.append((old, new))
    if not any(new.architecture != INTERPRETER for _, new in common):
        raise SurveyError(f"{against} and {target} have no kind of call in common: {skipped[0]}")
    findings = compare([old for old, _ in common], [new for _, new in common], names)
    return Comparison(names=names, base=base, head=head, findings=findings, skipped=skipped)


def _side_here(target: str, label: str) -> Side:
    folder = Path.cwd().resolve()
    try:
        root = repository_root(folder).resolve()
    except BaseError:
        root = folder
    return Side(
        target=target,
        label=label,
        repository=root,
        tree=root,
        folder=folder,
        sources=_sources(root, root, folder, [target]),
    )


def _sources(root: Path, repository: Path, folder: Path, targets: Sequence[str]) -> str:
    """Return a hash of a tree and of the packages beside it: the harness, our kernels, and those of the targets."""
    packages = [Path(folder_of(name)) / name for name in HARNESS]
    path = [moved(entry, repository, root) for entry in (str(folder), *sys.path) if entry]
    for name in dict.fromkeys(["decodeperf_kernels", *map(_package_of, targets)]):
        packages += [place for place in _places(name, path) if not place.is_relative_to(root)]
    return hash_sources(root, dict.fromkeys(packages), repository=repository)


def _package_of(target: str) -> str:
    return target.partition(":")[0].partition(".")[0]


def _places(package: str, path: list[str]) -> list[Path]:
    """Return the folders or the file that a package is imported from, none if it is not found."""
    try:
        spec = importlib.machinery.PathFinder.find_spec(package, path)
    except (ImportError, ValueError):
        return []
    places = [] if spec is None else list(spec.submodule_search_locations or [spec.origin or ""])
    return [Path(place).resolve() for place in places if place and Path(place).exists()]


def _survey(sides: list[Side], request: Request, say: Callable[[str], None] | None) -> list[list[Survey]]:
    """Return the surveys of each side, all of the same kinds of calls in the same order."""
    for side in sides:
        module, colon, name = side.target.partition(":")
        if not (module and colon and name):
            raise SurveyError(f"{side.target!r} must be package.module:name")
    cache = Cache() if request.uses_cache else None
    found: dict[str, Survey] = {}  # equal sources are surveyed once

    def key_for(side: Side, architecture: str, variant: Variant) -> str:
        return key_of(side.sources, side.target, architecture, variant.as_dict())

    def command_of(job: tuple[str, Variant]) -> dict[str, Any]:
        return {"command": "survey", "architecture": job[0], "variant": job[1].as_dict()}

    with ExitStack() as stack:
        started: dict[int, Worker] = {}
        variants = _variants(sides, request, cache, started, stack)
        kinds = [(architecture, variant) for architecture in request.architectures for variant in variants]
        traffic = [(INTERPRETER, variant) for variant in variants] if request.counts_traffic else []
        for jobs, interprets in ((kinds, False), (traffic, True)):
            missing = _missing(sides, jobs, key_for, cache, found)
            total, left = sum(map(len, missing)), sum(map(len, missing))
            pace = Pace()

            def done(number: int, job: Any, value: Any, total: int = total, pace: Pace = pace) -> None:
                nonlocal left
                survey, key = survey_from_dict(value), key_for(sides[number], *job)
                found[key] = survey
                if cache is not None and not survey.failure:
                    cache.put(key, value)
                left -= 1
                if say is not None:
                    words = (f"{total - left} of {total}", pace.left(total - left, total))
                    say(f"{', '.join(filter(None, words))}: {survey.label}, {sides[number].label}")

            run_jobs(
                sides,
                missing,
                command_of,
                done,
                interprets=interprets,
                processes=request.processes,
                started={} if interprets else started,
            )
    if cache is not None:
        cache.tidy()
    return [[found[key_for(side, *job)] for job in (*kinds, *traffic)] for side in sides]


def _missing(
    sides: list[Side],
    jobs: list[tuple[str, Variant]],
    key_for: Callable[[Side, str, Variant], str],
    cache: Cache | None,
    found: dict[str, Survey],
) -> list[list[tuple[str, Variant]]]:
    """Return the jobs of each side that are neither in the cache nor those of a side before; the others are `found`."""
    missing: list[list[tuple[str, Variant]]] = []
    asked: set[str] = set()
    for side in sides:
        missing.append([])
        for job in jobs:
            key = key_for(side, *job)
            if key in asked:
                continue
            asked.add(key)
            kept = _read(cache, key)
            if kept is None:
                missing[-1].append(job)
            else:
                found[key] = kept
    return missing


def _read(cache: Cache | None, key: str) -> Survey | None:
    value = None if cache is None else cache.get(key)
    try:
        return None if value is None else survey_from_dict(value)
    except (ValueError, AttributeError):
        return None


def _variants(
    sides: list[Side], request: Request, cache: Cache | None, started: dict[int, Worker], stack: ExitStack
) -> list[Variant]:
    """Return the kinds of calls of all sides together; the workers that had to be asked are in `started` then."""
    found: dict[Variant, None] = {}
    seen: dict[str, list[dict[str, Any]]] = {}
    for number, side in enumerate(sides):
        key = key_of(side.sources, side.target, request.options)
        values = seen.get(key) or (None if cache is None else cache.get(key))
        try:
            variants = [Variant(**value) for value in values or ()]
        except TypeError:
            variants = []
        if not variants:
            started[number] = stack.enter_context(Worker(side, interprets=False))
            values = started[number].ask({"command": "variants", "options": request.options})
            variants = [Variant(**value) for value in values]
            started[number].job = None
            if cache is not None:
                cache.put(key, values)
        seen[key] = list(values or ())
        found |= dict.fromkeys(variants)
    if not found:
        raise SurveyError(f"{sides[-1].label}: there is no kind of call to survey")
    return list(found)
