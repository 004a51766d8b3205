"""The job behind `limbeck analyze`: a file's subject is set up once, each analysis measures it, and finished measurements are kept."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from limbeck import store
from limbeck.analyze import ANALYSES
from limbeck.analyze.subject import Analysis, NotApplicable, Subject
from limbeck.cache import Cache
from limbeck.errors import FileFormatError, OptionError, nearest
from limbeck.experts.expert import Labeler
from limbeck.experts.trajectory import Trajectory, train_expert
from limbeck.progress import SILENT, Reporter
from limbeck.streams import Streams
from limbeck.study.analyze_options import AnalyzeOptions
from limbeck.study.judge import Bench, set_up
from limbeck.study.options import EvaluationOptions
from limbeck.study.setting import Setting
from limbeck.train.network import Network
from limbeck.train.plan import plan_for
from limbeck.types.distilled import DistilledDataset
from limbeck.types.measurement import Measurement
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe


@dataclass(frozen=True)
class Outcome:
    """What came of one analysis: its measurement, or the sentence that says why there is none. `kept` says that it was measured before."""

    name: str
    measurement: Measurement | None = None
    refusal: str = ""
    kept: bool = False


@dataclass(frozen=True)
class Analyzed:
    """All outcomes on one file, and the subject that they are of. `earlier` were measured on the same subject by another command, and lie in the same folder."""

    subject: Subject
    title: str
    outcomes: tuple[Outcome, ...]
    earlier: tuple[Outcome, ...] = ()


def analyze_file(
    file: Path,
    names: Sequence[str],
    options: AnalyzeOptions,
    out: Path,
    *,
    source: str | None = None,
    model: str | None = None,
    seed: int | None = None,
    cache: Cache | None = None,
    reporter: Reporter = SILENT,
) -> Analyzed:
    """Runs the named analyses (all of them with ``options.all``) on a distilled file and its source, and writes ``out/NAME.json`` as each is done.

    A finished measurement is kept under the digests of everything that decides it, its options and the analysis's version. With ``options.all`` an analysis
    that cannot work on this file is reported with its sentence; one that was named raises it.
    """
    cache = cache or Cache()
    asked = chosen_names(names, options)
    analyses = [make_analysis(name, options) for name in asked]
    subject, title = _subject(file, options, source, model, seed, cache, reporter)
    outcomes = []
    for name, analysis in zip(asked, analyses, strict=True):
        try:
            outcomes.append(measure(name, analysis, subject, reporter))
        except NotApplicable as problem:
            if not options.all:
                raise
            outcomes.append(Outcome(name, refusal=str(problem)))
            continue
        measurement = outcomes[-1].measurement
        assert measurement is not None
        store.write_json(out / f"{name}.json", measurement.to_dict())
    return Analyzed(subject, title, tuple(outcomes), tuple(_earlier(out, asked, subject)))


def _earlier(folder: Path, asked: Sequence[str], subject: Subject) -> Iterator[Outcome]:
    for name in ANALYSES:
        if name in asked:
            continue
        try:
            found = Measurement.from_dict(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, FileFormatError):
            continue
        if found.settings.get("subject") == _about(subject):
            yield Outcome(name, found, kept=True)


def chosen_names(names: Sequence[str], options: AnalyzeOptions) -> list[str]:
    """The analyses to run, each once. Options must belong to one of them."""
    if options.all and names:
        raise OptionError(f"--all runs every analysis, so there is no need to name {', '.join(names)}; leave out one of the two")
    asked = list(ANALYSES) if options.all else list(dict.fromkeys(ANALYSES.check(name) for name in names))
    for text in options.option:
        name = text.partition(":")[0]
        if ANALYSES.check(name) not in asked:
            raise OptionError(f"--option {text} is for {name!r}, which is not run; add {name} to the command")
    return asked


def make_analysis(name: str, options: AnalyzeOptions) -> Analysis:
    """An analysis with its options: ``--seeds`` where it has a field of that name, and every ``--option`` that names it. Raises `OptionError`, one sentence."""
    kind = ANALYSES[name]
    fields = kind.Options.model_fields
    given: dict[str, Any] = {"seeds": options.seeds} if options.seeds is not None and "seeds" in fields else {}
    for text in options.option:
        if text.partition(":")[0] != name:
            continue
        key, equals, value = (part.strip() for part in text.partition(":")[2].partition("="))
        if not equals or not value:
            raise OptionError(f"options of analyses are written NAME:KEY=VALUE, got {text!r}; write for example recognition:epochs=5")
        given[key] = _read(value, fields[key].annotation) if key in fields else value
    return configured(name, given)


def configured(name: str, given: Mapping[str, Any]) -> Analysis:
    """An analysis with options as plain values. Raises `OptionError`, one sentence."""
    kind = ANALYSES[name]
    for key in given:
        if key not in kind.Options.model_fields:
            raise OptionError(f"analysis {name} has no option {key!r}; {nearest(key, kind.Options.model_fields)}")
    try:
        made: Analysis = kind(kind.Options(**given))
    except ValidationError as error:
        fault = error.errors()[0]
        raise OptionError(
            f"option {'.'.join(str(part) for part in fault['loc'])} of analysis {name}: {fault['msg'][:1].lower()}{fault['msg'][1:]}, got {fault['input']!r}"
        ) from None
    return made


def options_of(analysis: Analysis) -> dict[str, Any]:
    """An analysis's options as plain JSON."""
    options: Any = getattr(analysis, "options")  # noqa: B009 (no part of the protocol's type)
    return dict(options.model_dump(mode="json"))


def measure(name: str, analysis: Analysis, subject: Subject, reporter: Reporter = SILENT) -> Outcome:
    """The measurement of one analysis, from what is kept or made now."""
    task = {"analysis": name, "version": analysis.version, "options": options_of(analysis), "subject": subject.identity}
    files = getattr(analysis, "files", ())
    if files:
        task["files"] = [_digest(path) for path in files]
    path = subject.cache.path("measurements", subject.cache.key("measurements", task), ".json")
    try:
        return Outcome(name, Measurement.from_dict(json.loads(path.read_text(encoding="utf-8"))), kept=True)
    except (OSError, ValueError, FileFormatError):
        pass
    measurement = analysis.measure(subject, reporter)
    measurement = replace(measurement, settings={**measurement.settings, "subject": _about(subject)})
    store.write_json(path, measurement.to_dict())
    # as it will be read the next time, so that the first output equals every later one
    return Outcome(name, Measurement.from_dict(measurement.to_dict()))


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""  # the analysis says what is wrong with it


def _about(subject: Subject) -> dict[str, Any]:
    """What was analyzed, as plain JSON: digests, architecture, protocol and seeds."""
    about: dict[str, Any] = json.loads(store.canonical_json({**subject.identity, "protocol": subject.protocol, "network": str(subject.network.spec)}))
    return about


def _read(value: str, annotation: Any) -> Any:
    """A value as typed: ``none``, JSON for lists, or commas between the entries of a field that holds several."""
    if value == "none":
        return None
    if value.startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise OptionError(f'a list in brackets is JSON, got {value}; write for example ["convnet:width=64,depth=3"]') from None
    return [part.strip() for part in value.split(",") if part.strip()] if "tuple" in str(annotation) else value


def _subject(
    file: Path, options: AnalyzeOptions, source: str | None, model: str | None, seed: int | None, cache: Cache, reporter: Reporter
) -> tuple[Subject, str]:
    judging = EvaluationOptions(protocol=options.protocol, device=options.device, threads=options.threads)
    bench = set_up(
        file,
        judging,
        source=source,
        source_options=options,
        model=model,
        seed=seed,
        expert_file=options.expert_file,
        cache=cache,
        reporter=reporter,
    )
    return subject_of(bench, options.device, options.threads, cache), f"{Path(file).name} on {bench.setting.spec}"


def subject_of(bench: Bench, device: str, threads: int | None, cache: Cache) -> Subject:
    """A bench as analyses see it."""
    return make_subject(
        bench.dataset,
        bench.setting,
        bench.problem.network,
        bench.protocol.recipe,
        bench.protocol.label,
        bench.plan,
        Streams(bench.seed),
        cache,
        labeler=bench.labeler,
        device=device,
        threads=threads,
    )


def make_subject(
    dataset: DistilledDataset,
    setting: Setting,
    network: Network,
    recipe: Recipe,
    protocol: str,
    plan: ExecutionPlan,
    streams: Streams,
    cache: Cache,
    *,
    labeler: Labeler | None,
    device: str,
    threads: int | None,
) -> Subject:
    """A distilled set and its source as analyses see them; `recipe` is that of the protocol's students, at the set's own step size where it has one."""
    splits, streams = setting.splits, streams["analyze"]

    def trajectories(network: Network, recipe: Recipe, number: int, steps: tuple[int, ...], reporter: Reporter) -> Trajectory:
        images = recipe.total_steps(len(splits.train)) * recipe.batch_size
        return train_expert(
            network,
            recipe,
            splits.train,
            splits.validation,
            setting.pixels,
            # apart from the experts of the same job: what labeled the set must not be what it is compared with
            seed=streams.seed("real"),
            index=number,
            plan=plan_for(network, images, batch=recipe.batch_size, device=device, threads=threads),
            cache=cache,
            steps=steps,
            reporter=reporter,
        )

    return Subject(
        dataset=dataset,
        train=splits.train,
        validation=splits.validation,
        test=splits.test,
        pixels=setting.pixels,
        network=network,
        recipe=recipe if dataset.step_size is None else recipe.with_(lr=dataset.step_size),
        protocol=protocol,
        streams=streams,
        plan=plan,
        cache=cache,
        trajectories=trajectories,
        labeler=labeler,
        threads=threads,
    )
