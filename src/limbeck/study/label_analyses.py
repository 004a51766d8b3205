"""Analyses of studies of labels: the figures of the label paper that need arithmetic of their own (Qin, Deng and Alvarez-Melis 2024, arXiv 2406.10485)."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from limbeck.analyze.subject import Plot
from limbeck.errors import OptionError
from limbeck.labels.classes import class_matrix, cluster_order, mass_on
from limbeck.labels.distances import distances_over_epochs, entropies, js_distance, min_max, nearest_snapshot
from limbeck.labels.scaling import Bounded, data_saving, fit_scaling, multipliers, pareto_front
from limbeck.streams import Streams
from limbeck.study.analyses import Made, StudyAnalysisOptions
from limbeck.study.artefacts import Artefacts
from limbeck.study.claims import difference, ratio
from limbeck.study.spec import Cell, Scalar, matching
from limbeck.study.view import NotMeasured, Selector, View
from limbeck.types.distilled import DistilledDataset
from limbeck.types.evaluation import Interval, nested_interval, t_interval
from limbeck.types.measurement import Measurement, Quantity

_STREAMS = Streams(0)["study", "analysis"]
_WORLDS = 2000


class RelativeOptions(StudyAnalysisOptions):
    """A measure as a fraction of a baseline's."""

    drawn = (("of", "x"), ("of", "color"), ("baseline", "color"))

    of: Annotated[Selector, Field(description="what is compared, along `x`")]
    baseline: Annotated[Selector, Field(description="what it is divided by")]
    x: Annotated[str, Field(description="axis across")]
    color: Annotated[str, Field(description="axis with a curve for each value, which the baseline has too")]
    log: Annotated[bool, Field(description="space the axis logarithmically")] = False


def relative(view: View, options: RelativeOptions, artefacts: Artefacts) -> Made:
    """``mean(of) / mean(baseline)`` along `x` for each value of `color`, with Fieller's interval from paired students (appendix C.2, figure 4).

    Scalars: `loss COLOR VALUE`, the mean over `x` of one minus the relative measure, from which `more lost at the first` is the loss at the first value of
    `color` minus that at the last; the same with `past X FIRST`, without the first value of `x` (the largest entry decides which class a label names, the others
    what else it says). Each has an interval over draws, experts and students, in which the baseline is as uncertain as what it divides (see `_losses`).
    """
    across, colors = view.along(options.of, options.x), view.along(options.of, options.color)
    arrays = [np.full((len(colors), len(across)), np.nan) for _ in range(3)]
    spans = {"": 0} | ({f" past {options.x} {across[0]}": 1} if len(across) > 1 else {})
    losses: dict[str, list[np.ndarray]] = {span: [] for span in spans}
    covers = ""
    for row, color in enumerate(colors):
        base = view.values(options.baseline.at(**{options.color: color}))
        parts = [view.values(options.of.at(**{options.color: color, options.x: value})) for value in across]
        for column, part in enumerate(parts):
            found = ratio(part, base)
            covers = found.covers
            for array, value in zip(arrays, (found.mean, found.low, found.high), strict=True):
                array[row, column] = value if math.isfinite(value) else np.nan
        if any(part.shape != base.shape for part in parts):
            raise OptionError(
                f"{options.of.words} and its baseline {options.baseline.words} need the same draws, experts and students at {options.color} {color}; "
                "cross both arms over the same axes"
            )
        for span, start in spans.items():
            losses[span].append(_losses(np.mean(parts[start:], axis=0), base))
    scalars: dict[str, Quantity] = {}
    for span, found_losses in losses.items():
        scalars |= {f"loss {options.color} {color}{span}": _scalar(nested_interval(loss)) for color, loss in zip(colors, found_losses, strict=True)}
        if len(colors) > 1:
            scalars[f"more lost at the first{span}"] = _scalar(difference(found_losses[0], found_losses[-1]))
    quantities = {"relative": Quantity(arrays[0], (options.color, options.x), "of the baseline", arrays[1], arrays[2], covers), **scalars}
    plot = Plot("relative", options.title, options.x, color=options.color, log=options.log, reading=options.reading)
    return Measurement("relative", options.title, quantities, {options.color: tuple(colors), options.x: tuple(across)}), (plot,)


def _losses(part: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Of every repeat [D, E, S], what it says of ``1 - mean(part) / mean(base)``: their mean is that loss, and their spread its uncertainty by the delta method,
    ``(base r - part) / mean(base)`` around it with r the ratio of the means. Dividing by a mean as if it were known would leave out the baseline's own."""
    r = part.mean() / base.mean()
    found: np.ndarray = 1 - r + (base * r - part) / base.mean()
    return found


class ScalingOptions(StudyAnalysisOptions):
    """The data-knowledge scaling law."""

    scalars = ("saving", "exponent", "residual")
    bare = ("residual",)
    drawn = (("hard", "x"), ("soft", "x"))

    hard: Annotated[Selector, Field(description="results under hard labels, along `x`")]
    soft: Annotated[
        tuple[Selector, ...], Field(min_length=1, description="results under soft labels: each may cover some values of `x`, all together several")
    ]
    x: Annotated[str, Field(description="axis of images per class")] = "ipc"
    samples: Annotated[int, Field(ge=20, description="bootstrap samples")] = 1000


def scaling(view: View, options: ScalingOptions, artefacts: Artefacts) -> Made:
    """Fits ``accuracy = a + b ((s n)^e - 1) / e`` with s = 1 for hard labels and one saving s for soft ones (section 4.3, figure 6; see
    `limbeck.labels.scaling.fit_scaling`). Entries are the means over students of each image draw and expert, or students where nothing else was repeated.

    Scalars: `exponent` and `saving` with bootstrap intervals over draws and experts, or over students alone where there is one draw: all entries of one draw move
    together, since images nest along `x` and both kinds of label share them. `measured` and `fitted` are accuracies by labels and budget; `saving at` is read off
    the measured hard-label curve without the law, NaN where that curve does not reach.
    """
    points: dict[str, dict[Scalar, np.ndarray]] = {"hard": {}, "soft": {}}
    for name, selectors in (("hard", (options.hard,)), ("soft", options.soft)):
        for selector in selectors:
            for value in view.along(selector, options.x):
                points[name][value] = view.values(selector.at(**{options.x: value}))
    budgets = sorted({float(value) for found in points.values() for value in found})
    images: list[float] = []
    accuracy: list[float] = []
    soft: list[bool] = []
    places: list[tuple[np.ndarray, ...]] = []
    shapes = {cell.shape for found in points.values() for cell in found.values()}
    if len(shapes) > 1:
        raise OptionError(
            f"{options.title}: hard and soft labels are not repeated equally often at every {options.x}; cross their arms over the same axes"
        )
    measured = {side: np.full((2, len(budgets)), np.nan) for side in ("mean", "low", "high")}
    for row, found in enumerate(points.values()):
        for value, cell in found.items():
            entries, repeats, over = _entries(cell)
            images += [float(value)] * len(entries)
            accuracy += entries.tolist()
            soft += [bool(row)] * len(entries)
            places.append(repeats)
            interval = nested_interval(cell)
            for side in measured:
                measured[side][row, budgets.index(float(value))] = getattr(interval, side)
    law = fit_scaling(
        np.array(images),
        np.array(accuracy),
        np.array(soft),
        generator=_STREAMS["scaling"].numpy("signs"),
        samples=options.samples,
        repeats=[np.concatenate(factor) for factor in zip(*places, strict=True)],
    )
    grid = np.array(budgets)
    there = [np.isfinite(line) for line in measured["mean"]]
    saved = np.full(len(budgets), np.nan)
    saved[there[1]] = data_saving(grid[there[0]], measured["mean"][0][there[0]], grid[there[1]], measured["mean"][1][there[1]])
    assert law.saving is not None
    quantities = {
        "measured": Quantity(measured["mean"], ("labels", options.x), "fraction", measured["low"], measured["high"], over),
        "fitted": Quantity(np.stack([law(grid), law(grid, soft=True)]), ("labels", options.x), "fraction"),
        "saving at": Quantity(saved, (options.x,), "times"),
        "exponent": _bounded(law.exponent, over),
        "saving": _bounded(law.saving, over, "times"),
        "residual": Quantity(np.array(law.residual), unit="fraction"),
    }
    plots = (
        Plot("measured", options.title, options.x, color="labels", log=True, reading=options.reading),
        Plot("fitted", f"{options.title}: the fitted law", options.x, color="labels", log=True),
        Plot("saving at", f"{options.title}: images that soft labels are worth", options.x, log=True),
    )
    notes = () if math.isfinite(law.scale) else ("the exponent is not positive, so the form with an offset does not exist",)
    settings = {"scale": law.scale if math.isfinite(law.scale) else None, "offset": law.offset if math.isfinite(law.offset) else None}
    axes = {"labels": ("hard", "soft"), options.x: tuple(budgets)}
    return Measurement("scaling", options.title, quantities, axes, settings=settings, notes=notes), plots


class FrontOptions(StudyAnalysisOptions):
    """Which settings are worth their price."""

    of: Annotated[tuple[Selector, ...], Field(min_length=1, description="what competes")]
    cost: Annotated[str, Field(description="measure that is the price: images or bytes")] = "bytes"
    value: Annotated[str, Field(description="measure that is worth it")] = "accuracy"


def front(view: View, options: FrontOptions, artefacts: Artefacts) -> Made:
    """The Pareto front of settings (figure 6, right): those that no other beats at the same price or less, by mean over what was repeated.

    Scalars: `share of SELECTOR on the front`, the fraction of the settings on the front that the selector chose, so that the shares of all selectors sum to one.
    Its interval is a bootstrap over draws and experts, or over students where there is one of each: the means of all settings move together by random multiples
    of their deviations in each draw (`limbeck.labels.scaling.multipliers`), prices stay, and the front is drawn anew. A difference of two settings' means then
    has Student's paired interval.
    """
    names, prices, cells, group = [], [], [], []
    for number, selector in enumerate(options.of):
        for setting in view.settings(selector):
            chosen = Selector(arm=selector.arm, **setting)
            prices.append(float(view.values(chosen.model_copy(update={"measure": options.cost})).mean()))
            cells.append(view.values(chosen.model_copy(update={"measure": options.value})))
            names.append(chosen.words)
            group.append(number)
    if len({cell.shape for cell in cells}) > 1:
        raise OptionError(f"{options.title}: what competes is not repeated equally often; cross its arms over the same draws and experts")
    entries, (_, repeats, covers) = np.stack([_entries(cell)[0] for cell in cells]), _entries(cells[0])
    values = entries.mean(1)
    moves = multipliers(repeats, _WORLDS, _STREAMS["front"].numpy("repeats")) @ (entries - values[:, None]).T / entries.shape[1] if repeats else []
    fronts = [pareto_front(np.array(prices), values + move) for move in moves]
    on = np.zeros(len(names))
    on[pareto_front(np.array(prices), values)] = 1
    share = {}
    for number, selector in enumerate(options.of):
        own = np.array(group) == number
        found = float(on[own].sum() / on.sum())
        # shares are few and far between: the bounds are shares that occurred, the measured one among them
        spread = [found, *np.quantile([own[front].mean() for front in fronts], [0.025, 0.975], method="inverted_cdf")] if fronts else [np.nan]
        share[f"share of {selector.words} on the front"] = _scalar(Interval(found, min(spread), max(spread), covers, len(entries[0])), "fraction")
    quantities = {
        "place": Quantity(np.stack([np.log10(prices), values], 1), ("setting", "coordinate")),
        "on the front": Quantity(on, ("setting",)),
        "arm": Quantity(np.array(group, dtype=float), ("setting",)),
        **share,
    }
    words = {"on the front": ("settings that another beats", "those on the front"), "arm": tuple(selector.words for selector in options.of)}
    plot = Plot("place", options.title, "setting", kind="scatter", color="arm", shape="on the front", words=words, reading=options.reading)
    return Measurement("front", options.title, quantities, {"setting": tuple(names), "coordinate": (f"{options.cost} (log10)", options.value)}), (
        plot,
    )


class RemovedClassOptions(StudyAnalysisOptions):
    """Accuracy on a class that something was taken from."""

    drawn = (("control", "panel"), ("treatments", "panel"), ("treatments", "which"))

    control: Annotated[Selector, Field(description="nothing removed, along `panel`")]
    treatments: Annotated[
        tuple[Selector, ...], Field(min_length=1, description="arms crossed over `which`, the number of the class that was removed")
    ]
    which: Annotated[str, Field(description="axis that holds the class's number")] = "removed"
    panel: Annotated[str, Field(description="axis with a drawing for each value")] = "ipc"


def removed_class(view: View, options: RemovedClassOptions, artefacts: Artefacts) -> Made:
    """Test accuracy on the images of the removed class alone (section 4.3, figure 7), by treatment, class (sorted by the control's accuracy at the first value
    of `panel`) and `panel`.

    Scalars: `mean ARM PANEL VALUE`, over the classes, and `ARM minus control PANEL VALUE`, each with a t interval over classes (students and draws averaged
    first).
    """
    panels = view.along(options.control, options.panel)
    classes = [int(value) for value in view.along(options.treatments[0], options.which)]
    arms = ("control", *(selector.arm for selector in options.treatments))
    grid, low, high = (np.full((len(panels), len(arms), len(classes)), np.nan) for _ in range(3))
    for row, value in enumerate(panels):
        for column, number in enumerate(classes):
            asked = [options.control.at(**{options.panel: value})]
            asked += [selector.at(**{options.panel: value, options.which: number}) for selector in options.treatments]
            for place, selector in enumerate(asked):
                interval = _class_accuracy(view, selector, number, artefacts)
                covers = interval.covers
                _put((grid, low, high), (row, place, column), interval)
    order = np.argsort(grid[0, 0], kind="stable")
    axes_of = (options.panel, "treatment", "class")
    quantities = {"accuracy": Quantity(grid[:, :, order], axes_of, "fraction", low[:, :, order], high[:, :, order], covers)}
    for row, value in enumerate(panels):
        for place, arm in enumerate(arms):
            quantities[f"mean {arm} {options.panel} {value}"] = _scalar(t_interval(grid[row, place], "classes"), "fraction")
            if place:
                gap = t_interval(grid[row, place] - grid[row, 0], "classes")
                quantities[f"{arm} minus control {options.panel} {value}"] = _scalar(gap, "fraction")
    axes: dict[str, tuple[Any, ...]] = {options.panel: tuple(panels), "treatment": arms, "class": tuple(f"class {classes[place]}" for place in order)}
    plot = Plot("accuracy", options.title, "class", kind="dots", color="treatment", panel=options.panel, reading=options.reading)
    return Measurement("removed-class", options.title, quantities, axes), (plot,)


class LabelDistanceOptions(StudyAnalysisOptions):
    """How far learned labels are from an expert's."""

    drawn = (("learned", "panel"), ("expert", "panel"), ("expert", "over"), ("pair", "panel"), ("pair", "over"))

    learned: Annotated[Selector, Field(description="sets with learned labels of real images, of one setting apart from `panel`")]
    expert: Annotated[Selector, Field(description="the same images under an expert's labels, along `over`")]
    pair: Annotated[Selector, Field(description="the same images under single experts that differ by their seed (axis expert), along `over`")]
    over: Annotated[str, Field(description="axis of the expert's snapshot")] = "epoch"
    panel: Annotated[str, Field(description="axis with a drawing for each value")] = "ipc"


def label_distance(view: View, options: LabelDistanceOptions, artefacts: Artefacts) -> Made:
    """Jensen-Shannon distances (base 2, root; in [0, 1]) between learned labels and an expert's at each snapshot, image by image (section 5.2, figures 8 and
    12).

    `normalized` is min-max scaled over the snapshots for each image and averaged over images, `raw` is not; `between experts` is the raw distance between
    single experts of different seeds at the same snapshot: what two runs of the same thing differ by. Scalars for each value of `panel`: `nearest` (the
    snapshot at which the mean normalized distance is smallest, with a bootstrap interval over images), `raw at the nearest`, `between experts at the
    nearest`, and their difference.
    """
    panels, moments = view.along(options.learned, options.panel), view.along(options.expert, options.over)
    names = ("normalized", "raw", "between experts")
    grids = {name: [np.full((len(panels), len(moments)), np.nan) for _ in range(3)] for name in names}
    quantities: dict[str, Quantity] = {}
    for row, value in enumerate(panels):
        learned = _rows_of(view, options.learned.at(**{options.panel: value}), artefacts)
        by_expert = [_rows_of(view, options.expert.at(**{options.panel: value, options.over: at}), artefacts) for at in moments]
        singles = [_rows_by_expert(view, options.pair.at(**{options.panel: value, options.over: at}), artefacts) for at in moments]
        draws = sorted(learned)
        raw = torch.cat([distances_over_epochs(learned[draw], torch.stack([found[draw] for found in by_expert])) for draw in draws], 1)
        pairs = torch.stack([_mean_pairs(found, draws) for found in singles])
        scaled = min_max(raw)
        for name, found in zip(names, (scaled, raw, pairs), strict=True):
            for column in range(len(moments)):
                _put(grids[name], (row, column), t_interval(_finite(found[column].numpy()), "images"))
        nearest = nearest_snapshot(scaled)
        low, high = _nearest_interval(scaled)
        place = [float(moments[nearest]), float(moments[low]), float(moments[high])]
        word = f"{options.panel} {value}"
        quantities[f"nearest {word}"] = Quantity(np.array(place[0]), (), options.over, np.array(place[1]), np.array(place[2]), "images")
        quantities[f"raw at the nearest {word}"] = _scalar(t_interval(raw[nearest].numpy(), "images"))
        quantities[f"between experts at the nearest {word}"] = _scalar(t_interval(pairs[nearest].numpy(), "images"))
        quantities[f"raw minus between experts {word}"] = _scalar(t_interval((raw[nearest] - pairs[nearest]).numpy(), "images"))
    axes = {options.panel: tuple(panels), options.over: tuple(moments)}
    for name in names:
        mean, low_side, high_side = grids[name]
        quantities[name] = Quantity(mean, (options.panel, options.over), "distance", low_side, high_side, "images")
    titles = {"normalized": "", "raw": ": raw distances", "between experts": ": between experts of different seeds"}
    plots = tuple(
        Plot(name, options.title + titles[name], options.over, color=options.panel, log=True, reading=options.reading if name == "normalized" else "")
        for name in names
    )
    return Measurement("label-distance", options.title, quantities, axes), plots


class ClassStructureOptions(StudyAnalysisOptions):
    """Which classes labels take for each other."""

    scalars = ("mass on related classes", "under an even spread", "times an even spread")
    bare = ("under an even spread",)

    of: Annotated[Selector, Field(description="sets whose labels are averaged class by class, of one setting")]
    by: Annotated[Literal["predicted", "owner"], Field(description="group images by the label's largest entry, or by their class")] = "predicted"
    related: Annotated[
        str | None, Field(description="classes are related when their names share a part; the character that divides the parts, such as |")
    ] = None
    shown: Annotated[int, Field(ge=2, description="most classes to draw, taken evenly from the order")] = 100


def class_structure(view: View, options: ClassStructureOptions, artefacts: Artefacts) -> Made:
    """The mean label of every class without its own entry, in the order of a hierarchical clustering (appendix C.1, figure 10).

    With `related`, scalars `mass on related classes` (the share of off-diagonal label mass that lies on related classes, with an interval over sets), the
    same `under an even spread`, and `times an even spread`, their ratio.
    """
    sets = [artefacts.dataset(view.row(cell)) for cell in _cells(view, options.of)]
    tables = [class_matrix(_distributions(made), made.owners.long(), options.by) for made in sets]
    total = np.nansum(tables, axis=0) / np.maximum(np.isfinite(tables).sum(0), 1)
    order = cluster_order(total)
    drawn = order if len(order) <= options.shown else [order[i] for i in np.linspace(0, len(order) - 1, options.shown).round().astype(int)]
    names = sets[0].classes
    quantities = {"mean label": Quantity(total[np.ix_(drawn, drawn)], ("class", "entry"), "probability")}
    if options.related is not None:
        relations = _relations(names, options.related)
        found = [mass_on(table, relations) for table in tables]
        even = found[0][1]
        share = t_interval(np.array([mass for mass, _ in found]), "sets")
        quantities["mass on related classes"] = _scalar(share, "fraction")
        quantities["under an even spread"] = Quantity(np.array(even), unit="fraction")
        quantities["times an even spread"] = _scalar(Interval(share.mean / even, share.low / even, share.high / even, share.covers, share.n), "times")
    axes = {"class": tuple(names[k] for k in drawn), "entry": tuple(names[k] for k in drawn)}
    plot = Plot("mean label", options.title, "entry", kind="heat", color="class", reading=options.reading)
    return Measurement("class-structure", options.title, quantities, axes), (plot,)


class LabelProfileOptions(StudyAnalysisOptions):
    """Labels of some images while the expert trains."""

    scalars = ("top class changed", "entropy at the first")
    drawn = (("of", "over"),)

    of: Annotated[Selector, Field(description="sets of the same images, along `over`")]
    over: Annotated[str, Field(description="axis of the expert's snapshot")] = "epoch"
    images: Annotated[int, Field(ge=1, description="images to show")] = 3
    entries: Annotated[int, Field(ge=1, description="largest entries to show")] = 5


def label_profile(view: View, options: LabelProfileOptions, artefacts: Artefacts) -> Made:
    """The largest entries of a few images' labels at every snapshot (section 4.1, figure 3), shown by rank, with their classes in the notes; and over all
    images the mean entropy, the mean entry of the true class and how often the top class is the one of the snapshot before.

    Scalars: `entropy at the first` as a fraction of log K, and `top class changed`, the fraction of images whose top class at the first snapshot is not that
    at the last.
    """
    moments = view.along(options.of, options.over)
    draw = [_first_set(view, options.of.at(**{options.over: at}), artefacts) for at in moments]
    rows = [_distributions(made) for made in draw]
    owners, names = draw[0].owners.long(), draw[0].classes
    chosen = torch.linspace(0, len(owners) - 1, min(options.images, len(owners))).round().long().unique()
    entries = min(options.entries, len(names))
    top = np.stack([found[chosen].topk(entries, 1).values.numpy() for found in rows])
    notes = []
    for number, image in enumerate(chosen.tolist()):
        for at, found in zip(moments, rows, strict=True):
            best = found[image].topk(entries)
            spoken = ", ".join(f"{names[k]} {float(p):.2f}" for k, p in zip(best.indices.tolist(), best.values, strict=True))
            notes.append(f"image {number + 1} ({names[int(owners[image])]}), {options.over} {at}: {spoken}")
    tops = [found.argmax(1) for found in rows]
    kept = [float("nan"), *(float((now == before).double().mean()) for before, now in itertools.pairwise(tops))]
    changed = t_interval((tops[0] != tops[-1]).double().numpy(), "images")
    soft = t_interval((entropies(rows[0]) / math.log(len(names))).numpy(), "images")
    quantities = {
        "entry": Quantity(top.transpose(1, 0, 2), ("image", options.over, "rank"), "probability"),
        "entropy": _along([t_interval(entropies(found).numpy(), "images") for found in rows], options.over, "nats"),
        "entry of the true class": _along(
            [t_interval(found.gather(1, owners[:, None])[:, 0].double().numpy(), "images") for found in rows], options.over, "probability"
        ),
        "same top class as before": Quantity(np.array(kept), (options.over,), "fraction"),
        "top class changed": _scalar(changed, "fraction"),
        "entropy at the first": _scalar(soft, "of log K"),
    }
    axes = {"image": tuple(range(1, len(chosen) + 1)), options.over: tuple(moments), "rank": tuple(range(1, entries + 1))}
    plots = (
        Plot("entry", options.title, "rank", color=options.over, panel="image", reading=options.reading),
        Plot("entropy", f"{options.title}: mean entropy", options.over, log=True),
        Plot("entry of the true class", f"{options.title}: entry of the true class", options.over, log=True),
    )
    return Measurement("label-profile", options.title, quantities, axes, notes=tuple(notes)), plots


class SeedSpreadOptions(StudyAnalysisOptions):
    """How far results of different seeds lie apart."""

    scalars = ("largest spread",)
    drawn = (("of", "x"),)

    of: Annotated[Selector, Field(description="an arm with several draws, or several experts, along `x`")]
    factor: Annotated[Literal["draw", "expert"], Field(description="which seed is varied")]
    x: Annotated[str, Field(description="axis across")] = "ipc"


def seed_spread(view: View, options: SeedSpreadOptions, artefacts: Artefacts) -> Made:
    """Mean accuracy of every seed, and the standard deviation between seeds (appendix A.3, tables 5 and 6), along `x`.

    `spread` is the standard deviation of the seeds' means, whose 95 % interval is chi-squared's; it contains the students' own noise, which `students`
    estimates (their standard deviation within a seed over the root of their number): a spread about as large says that the seed does not matter. Scalar:
    `largest spread`.
    """
    across = view.along(options.of, options.x)
    from scipy.stats import chi2

    means, spread, noise = [], [], []
    for value in across:
        cells = view.values(options.of.at(**{options.x: value}))
        table = cells if options.factor == "draw" else cells.swapaxes(0, 1)
        seeds = table.reshape(len(table), -1)
        if len(seeds) < 2:
            raise OptionError(f"a spread between seeds needs at least 2 of them, got {len(seeds)}; give the axis {options.factor!r} more values")
        free = len(seeds) - 1
        deviation = float(seeds.mean(1).std(ddof=1))
        bounds = [deviation * math.sqrt(free / float(chi2.ppf(level, free))) for level in (0.975, 0.025)]
        means.append(seeds.mean(1))
        spread.append(Interval(deviation, bounds[0], bounds[1], f"{options.factor}s", len(seeds)))
        noise.append(math.sqrt(float(seeds.var(1, ddof=1).mean()) / seeds.shape[1]) if seeds.shape[1] > 1 else math.nan)
    largest = max(spread, key=lambda found: found.mean)
    quantities = {
        "accuracy": Quantity(np.stack(means, 1), ("seed", options.x), "fraction"),
        "spread": _along(spread, options.x, "fraction"),
        "students": Quantity(np.array(noise), (options.x,), "fraction"),
        "largest spread": _scalar(largest, "fraction"),
    }
    axes = {"seed": tuple(range(1, len(means[0]) + 1)), options.x: tuple(across)}
    plots = (
        Plot("accuracy", options.title, options.x, kind="dots", color="seed", reading=options.reading),
        Plot("spread", f"{options.title}: standard deviation between seeds", options.x, kind="dots"),
    )
    return Measurement("seed-spread", options.title, quantities, axes), plots


class VersusOptions(StudyAnalysisOptions):
    """Two ways to get experts, compared at equal accuracy of the expert."""

    scalars = ("gap", "best gap")
    drawn = (
        ("first_expert", "first_over"),
        ("first_students", "first_over"),
        ("second_expert", "second_over"),
        ("second_students", "second_over"),
    )

    first: Annotated[str, Field(description="name of one way")]
    first_expert: Annotated[Selector, Field(description="scores of its experts, along `first_over`")]
    first_students: Annotated[Selector, Field(description="students of their labels, along `first_over`")]
    first_over: Annotated[str, Field(description="axis of its snapshots")]
    second: Annotated[str, Field(description="name of the other")]
    second_expert: Annotated[Selector, Field(description="scores of its experts, along `second_over`")]
    second_students: Annotated[Selector, Field(description="students of their labels, along `second_over`")]
    second_over: Annotated[str, Field(description="axis of its snapshots")]


def versus(view: View, options: VersusOptions, artefacts: Artefacts) -> Made:
    """Students' accuracy against the accuracy of the expert that labels, for two ways to stop it early (appendix A.4: a smaller learning rate, or snapshots
    within the first epoch).

    Curves are interpolated linearly. Scalars: `gap`, the first's minus the second's students, averaged over the expert accuracies that both reach, and `best
    gap`, the difference of their best points (each the maximum of a curve, so neither is an estimate of what a choice on validation would give); intervals
    over image draws and students, whose curves are compared one by one.
    """
    ways = {
        "first": _course(view, options.first_expert, options.first_students, options.first_over),
        "second": _course(view, options.second_expert, options.second_students, options.second_over),
    }
    low = max(float(x.min()) for x, _ in ways.values())
    high = min(float(x.max()) for x, _ in ways.values())
    if not low < high:
        raise OptionError(f"the two ways have no expert accuracy in common ({low:.3g} to {high:.3g}); choose snapshots that overlap")
    grid = np.linspace(low, high, 50)
    curves = {name: np.stack([np.interp(grid, x, line) for line in y.reshape(len(x), -1).T]) for name, (x, y) in ways.items()}
    shape = ways["first"][1].shape[1:]
    if ways["second"][1].shape[1:] != shape:
        raise OptionError("the two ways need the same draws, experts and students; cross both arms over the same axes")
    gap = nested_interval((curves["first"] - curves["second"]).mean(1).reshape(shape))
    best = nested_interval(ways["first"][1].max(0) - ways["second"][1].max(0))
    quantities = {
        "students": Quantity(np.stack([found.mean(0) for found in curves.values()]), ("way", "accuracy of the expert"), "fraction"),
        "gap": _scalar(gap, "fraction"),
        "best gap": _scalar(best, "fraction"),
    }
    axes = {"way": (options.first, options.second), "accuracy of the expert": tuple(grid.tolist())}
    plot = Plot("students", options.title, "accuracy of the expert", color="way", reading=options.reading)
    return Measurement("versus", options.title, quantities, axes), (plot,)


def _course(view: View, expert: Selector, students: Selector, over: str) -> tuple[np.ndarray, np.ndarray]:
    """Expert accuracies [n], rising, and their students' accuracies [n, D, E, S]."""
    moments = [at for at in view.along(students, over) if at in view.along(expert, over)]
    x = np.array([float(view.values(expert.at(**{over: at})).mean()) for at in moments])
    y = np.stack([view.values(students.at(**{over: at})) for at in moments])
    order = np.argsort(x, kind="stable")
    return x[order], y[order]


def _cells(view: View, selector: Selector) -> list[Cell]:
    """The cells of one setting, over all draws and experts."""
    if len(view.settings(selector)) != 1:
        raise OptionError(f"{selector.words} selects {len(view.settings(selector))} settings, but one is wanted; name values of its axes")
    return matching(view.cells, selector.where)


def _distributions(made: DistilledDataset) -> Tensor:
    """Label rows that sum to one; free labels are scaled to do so."""
    rows = made.targets().double().clamp_min(0)
    return rows / rows.sum(1, keepdim=True).clamp_min(1e-30)


def _first_set(view: View, selector: Selector, artefacts: Artefacts) -> DistilledDataset:
    return artefacts.dataset(view.row(_cells(view, selector)[0]))


def _rows_of(view: View, selector: Selector, artefacts: Artefacts) -> dict[Scalar, Tensor]:
    """Label rows by image draw."""
    return {cell.coordinates.get("draw", 0): _distributions(artefacts.dataset(view.row(cell))) for cell in _cells(view, selector)}


def _rows_by_expert(view: View, selector: Selector, artefacts: Artefacts) -> dict[tuple[Scalar, Scalar], Tensor]:
    """Label rows by image draw and expert."""
    return {
        (cell.coordinates.get("draw", 0), cell.coordinates.get("expert", 0)): _distributions(artefacts.dataset(view.row(cell)))
        for cell in _cells(view, selector)
    }


def _mean_pairs(found: Mapping[tuple[Scalar, Scalar], Tensor], draws: Iterable[Scalar]) -> Tensor:
    """Mean distance over all pairs of experts, image by image, draws one after the other."""
    experts = sorted({key[1] for key in found}, key=float)
    if len(experts) < 2:
        raise OptionError("distances between experts need at least 2 of them; give the axis 'expert' more values")
    pairs = [(a, b) for place, a in enumerate(experts) for b in experts[place + 1 :]]
    return torch.cat([torch.stack([js_distance(found[draw, a], found[draw, b]) for a, b in pairs]).mean(0) for draw in draws])


def _nearest_interval(scaled: Tensor) -> tuple[int, int]:
    """95 % bootstrap interval, over images, of the place of the nearest snapshot."""
    usable = scaled[:, torch.isfinite(scaled).all(0)].numpy()
    generator = _STREAMS["nearest"].numpy("images")
    picks = generator.integers(0, usable.shape[1], (1000, usable.shape[1]))
    found = np.array([usable[:, pick].mean(1).argmin() for pick in picks])
    low, high = np.quantile(found, [0.025, 0.975], method="nearest")
    return int(low), int(high)


def _class_accuracy(view: View, selector: Selector, number: int, artefacts: Artefacts) -> Interval:
    """Accuracy on one class, with its interval over draws, experts and students."""
    cells = _cells(view, selector)
    found = {
        (cell.coordinates.get("draw", 0), cell.coordinates.get("expert", 0)): artefacts.scores(view.row(cell))["class_accuracy"][:, number].double()
        for cell in cells
    }
    draws, experts = sorted({key[0] for key in found}), sorted({key[1] for key in found})
    if len(found) != len(draws) * len(experts):
        raise OptionError(f"{selector.words} does not cross its draws and experts; give the arm both axes")
    return nested_interval(np.array([[found[draw, expert].numpy() for expert in experts] for draw in draws]))


def _relations(names: Sequence[str], divider: str) -> np.ndarray:
    """Classes whose names, divided into parts, agree in the part of at least one place."""
    parts = [name.split(divider) for name in names]
    if len({len(part) for part in parts}) != 1 or len(parts[0]) < 2:
        raise OptionError(f"class names such as {names[0]!r} are not divided by {divider!r} into equally many parts; leave `related` out")
    return np.array([[a != b and any(x == y for x, y in zip(parts[a], parts[b], strict=True)) for b in range(len(names))] for a in range(len(names))])


def _finite(values: np.ndarray) -> np.ndarray:
    found: np.ndarray = values[np.isfinite(values)]
    if not len(found):
        raise NotMeasured("no image's distance changes over the snapshots")
    return found


def _put(arrays: Sequence[np.ndarray], place: tuple[int, ...], interval: Interval) -> None:
    for array, value in zip(arrays, (interval.mean, interval.low, interval.high), strict=True):
        array[place] = value


def _along(intervals: Sequence[Interval], axis: str, unit: str) -> Quantity:
    sides = [np.array([getattr(found, side) for found in intervals]) for side in ("mean", "low", "high")]
    return Quantity(sides[0], (axis,), unit, sides[1], sides[2], intervals[0].covers)


def _scalar(interval: Interval, unit: str = "") -> Quantity:
    return Quantity(np.array(interval.mean), (), unit, np.array(interval.low), np.array(interval.high), interval.covers)


def _bounded(found: Bounded, covers: str, unit: str = "") -> Quantity:
    return Quantity(np.array(found.value), (), unit, np.array(found.low), np.array(found.high), covers)


def _entries(cell: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...], str]:
    """The independent entries of a cell [D, E, S]: means over students of every draw and expert, or students where neither was repeated; for each repeated factor
    the number that an entry has of it; and what intervals from them cover."""
    draws, experts, students = cell.shape
    if draws == experts == 1:
        return cell.ravel(), (np.arange(students),) if students > 1 else (), "students" if students > 1 else "nothing repeated"
    number = np.indices((draws, experts)).reshape(2, -1)
    names = [name for name, count in (("image draws", draws), ("experts", experts)) if count > 1]
    repeats = tuple(number[factor] for factor, count in enumerate((draws, experts)) if count > 1)
    return cell.mean(2).ravel(), repeats, " and ".join([*names, "students"])
