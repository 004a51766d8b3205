"""Many softmax regressions at once: full-batch Adam as published, and a Newton method that says whether it converged.

Both solve M problems on the SAME inputs X [N, D] (other labels, other temperatures, or only the first rows), so that every product with X is one matrix
product for all problems instead of M reads of X. Two classes have one logit: the two rows of weights receive opposite gradients, and Adam moves them by opposite
steps, so their difference moves by twice the step and carries the whole model.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from limbeck.progress import Tick
from limbeck.streams import Streams
from limbeck.train.updates import adam_step

#: Adam problems that share a matrix product: beyond this many columns nothing is gained, and short problems would wait for long ones.
COLUMNS = 64
#: What `newton` calls converged: the relative size of the last step, its decrement in nats over all examples, and the relative change by rounding of labels.
TOLERANCE, DECREMENT, ROUNDING = 1e-4, 1e-6, 1e-2
#: Conjugate gradients: iterations before a problem counts as stiff, rows of the Hessians that are then factored, and the residual of a system solved to the end.
PATIENCE, DENSE, RESIDUAL = 100, 2000, 1e-10
#: Half a unit in the last place of a float64 beside one, and random signs of rounding errors to average over.
UNIT, PROBES = torch.finfo(torch.float64).eps / 2, 8


def linear_adam(
    inputs: Float[Tensor, "N D"],
    targets: Shaped[Tensor, "..."],
    rows: Int[Tensor, " M"],
    start: Float[Tensor, "M D K"],
    *,
    lr: float,
    steps: int,
    means: Float[Tensor, "M D"] | None = None,
    deviations: Float[Tensor, "M D"] | None = None,
    tick: Tick = lambda units: None,
) -> Float[Tensor, "M D K"]:
    """Weights of M softmax regressions without bias after `steps` steps of full-batch Adam on the mean cross-entropy, float32.

    Problem m sees the first ``rows[m]`` rows of X, as ``(x - means[m]) / deviations[m]`` where those are given, under `targets`: class numbers [N], probability rows
    [N, K] for all, or [N, M, K] for each. The same as training each with `limbeck.train.fit.fit` on whole batches, up to the order of sums (tested); measured on one
    core, 20 problems of 5,000 x 1,000 take a quarter of the time of 20 separate ones. Ticks once for each step of a problem.
    """
    classes = start.shape[2]
    order = torch.argsort(rows, stable=True)
    found = torch.empty_like(start, dtype=torch.float32)
    per = max(1, COLUMNS // (1 if classes == 2 else classes))
    for group in order.split(per):
        most = int(rows[group].max())
        own = targets[:most, group] if targets.ndim == 3 else targets[:most]
        shift = None if means is None else means[group].float()
        scale = None if deviations is None else deviations[group].float()
        found[group] = _adam(inputs[:most].float(), own, rows[group], start[group].float(), lr, steps, shift, scale, tick)
    return found


def _adam(
    x: Tensor, targets: Tensor, rows: Tensor, start: Tensor, lr: float, steps: int, means: Tensor | None, deviations: Tensor | None, tick: Tick
) -> Tensor:
    models, features, classes = start.shape
    binary = classes == 2
    columns = 1 if binary else classes
    if targets.ndim == 1:
        targets = torch.nn.functional.one_hot(targets, classes).float()
    if targets.ndim == 2:
        targets = targets[:, None, :].expand(len(x), models, classes)
    wanted = targets.float()[..., 1:] if binary else targets.float()
    # the mean over a problem's own rows, and nothing from the rows after them
    weight = (torch.arange(len(x), device=x.device)[:, None] < rows.to(x.device)).float() / rows.to(x.device)
    weight = weight[..., None]
    w = (start[..., 1:] - start[..., :1] if binary else start).permute(1, 0, 2).contiguous()  # [D, M, columns]
    scale = None if deviations is None else deviations.T[..., None]
    shift = None if means is None else means.T[..., None]
    slots: dict[str, Tensor] = {}
    xt = x.T
    for number in range(1, steps + 1):
        seen = w if scale is None else w / scale
        logits = (x @ seen.reshape(features, -1)).view(len(x), models, columns)
        if shift is not None:
            logits = logits - (shift * seen).sum(0)
        error = (torch.sigmoid(logits) if binary else torch.softmax(logits, -1)).sub_(wanted).mul_(weight)
        gradient = (xt @ error.view(len(x), -1)).view_as(w)
        if shift is not None:
            gradient = gradient - shift * error.sum(0)
        if scale is not None:
            gradient = gradient / scale
        moved, slots = adam_step({"w": w}, {"w": gradient}, slots, lr=2 * lr if binary else lr, number=number)
        w = moved["w"]
        tick(models)
    w = w.permute(1, 0, 2)
    return torch.cat([-w / 2, w / 2], -1) if binary else w


def adam_operations(features: int, classes: int, rows: int, steps: int) -> float:
    """Floating-point operations of one problem of `linear_adam`."""
    return 4.0 * rows * features * (1 if classes == 2 else classes) * steps


def default_start(models: int, features: int, classes: int, generator: torch.Generator) -> Float[Tensor, "M D K"]:
    """PyTorch's default for a linear layer: uniform within ``1 / sqrt(D)``."""
    bound = features**-0.5
    return (2 * torch.rand(models, features, classes, generator=generator) - 1) * bound


@dataclass(frozen=True)
class Newton:
    """Solutions of M softmax regressions, each with its verdict.

    `change` [M] is the last Newton step relative to the weights, which predicts their error before that step was taken; `decrement` [M] is what the step promised
    to take off the summed cross-entropy, twice, in nats; `rounding` [M] is the predicted relative change of the weights when each label is rounded to float64 (or a
    bound on it). `converged` [M]: all three are small, see `newton`. Weights of other problems are the last ones, and mean nothing.
    """

    weights: Float[Tensor, "M D K"]
    change: Float[Tensor, " M"]
    decrement: Float[Tensor, " M"]
    rounding: Float[Tensor, " M"]
    converged: Bool[Tensor, " M"]
    iterations: int


def newton(inputs: Float[Tensor, "N D"], log_targets: Float[Tensor, "M N K"], *, iterations: int = 200, tick: Tick = lambda units: None) -> Newton:
    """Minimizers of the cross-entropy ``-sum_k y_k log softmax(x W)_k`` against soft labels given as log-probabilities, from zero weights, without bias or penalty.

    Newton's method in float64: ``H step = -g`` with H the Fisher information, which is the Hessian here, and step lengths that follow the slope of the
    (convex) loss. Weights are kept in K - 1 coordinates orthogonal to the constant. With fewer rows than features, everything happens in the span of the rows,
    which gives the shortest of the minimizers.

    Systems are solved by conjugate gradients for all problems together, preconditioned by ``(X'X / N)^-1``: near zero logits that is the inverse of H itself. A
    problem that needs more than `PATIENCE` of their iterations, as those do whose labels are nearly hard, is solved from then on by its own Cholesky factor where
    H has at most `DENSE` rows; larger ones may take ten times the iterations.

    A problem is converged when a step solved to the end is below `TOLERANCE` of the weights, its decrement below `DECREMENT`, and the labels, as float64 holds
    them, determine the weights to `ROUNDING`: ``|H^-1 X' e| < ROUNDING |W|`` for errors e of half a unit in the last place of each probability. A small gradient
    would show none of this: where labels are nearly hard H is as small as they are soft, and two starts may both reach 1e-9 of the first gradient and share
    nothing. Where H is factored, the change is computed for random signs of e; elsewhere it is bounded with the smallest Ritz value of the last system, which also
    bounds what conjugate gradients left over. A problem stops where rounding determines all: hard labels that a hyperplane splits have no minimizer.
    """
    x, y = inputs.double(), log_targets.double().exp()
    models, count, classes = y.shape
    basis = _contrast(classes, x.device)
    span = None
    if count < x.shape[1]:
        span, small = torch.linalg.qr(x.T)
        x = small.T
    gram = x.T @ x / count
    factor, least = torch.linalg.cholesky(gram), torch.linalg.eigvalsh(gram)[0]
    features, columns = x.shape[1], classes - 1
    factored = features * columns <= DENSE
    signs = torch.randint(0, 2, (PROBES, count, classes), generator=Streams(0).torch("rounding")).to(x) * 2 - 1

    def times(matrix: Tensor, stacked: Tensor) -> Tensor:
        """``matrix @ stacked[m]`` for every m, as one product."""
        flat = stacked.permute(1, 0, 2).reshape(stacked.shape[1], -1)
        return (matrix @ flat).view(len(matrix), len(stacked), -1).permute(1, 0, 2)

    def gradients(logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        p = (logits @ basis.T).softmax(-1)
        return times(x.T, (p - rows) @ basis / count), p

    w = torch.zeros(models, features, columns, dtype=torch.float64, device=x.device)
    logits = torch.zeros(models, count, columns, dtype=torch.float64, device=x.device)
    gradient, p = gradients(logits, y)
    first = gradient.flatten(1).norm(dim=1)
    change, decrement, rounding = (torch.full_like(first, math.inf) for _ in range(3))
    converged = gradient.abs().amax((1, 2)) <= 1e-15  # uniform labels
    change[converged], decrement[converged], rounding[converged] = 0, 0, 0
    stopped, stiff = converged.clone(), torch.zeros_like(converged)
    taken = 0
    while taken < iterations and len(active := torch.nonzero(~stopped)[:, 0]):
        taken += 1
        tick(1)
        step, left, noise = torch.zeros_like(w), torch.zeros_like(first), torch.full_like(first, math.inf)
        final = stiff.clone()
        mild = active[~stiff[active]]
        if len(mild):
            final[mild] = change[mild] <= TOLERANCE**0.5
            forcing = (gradient[mild].flatten(1).norm(dim=1) / first[mild]).sqrt().clamp(max=0.1)
            solved = _conjugate_gradients(
                lambda v, place, chosen=p[mild]: times(x.T, _fisher(times(x, v), chosen[place], basis) / count),  # type: ignore[misc]
                lambda r: torch.cholesky_solve(r.permute(1, 0, 2).reshape(features, -1), factor).view(features, len(r), -1).permute(1, 0, 2),
                -gradient[mild],
                torch.where(final[mild], RESIDUAL, forcing),
                PATIENCE if factored else 10 * PATIENCE,
            )
            step[mild], stiff[mild] = solved.solution, ~solved.reached
            # in the norm of the preconditioner an error is at most its residual over the smallest eigenvalue
            scale = 1 / (solved.smallest * least.sqrt())
            left[mild] = solved.residual * scale
            noise[mild] = y[mild].flatten(1).norm(dim=1) * UNIT / count**0.5 * scale
        if not factored:
            stopped |= stiff
        else:
            for place in active[stiff[active]].tolist():
                both = torch.cat([-gradient[place][None], times(x.T, UNIT * (signs * y[place]) @ basis / count)])
                answers = _factored(x, p[place], basis, both)
                if answers is None:
                    stopped[place] = True
                    continue
                step[place], left[place], final[place] = answers[0], 0, True
                noise[place] = answers[1:].square().sum((1, 2)).mean().sqrt()
        active = active[~stopped[active]]
        if len(active) == 0:
            break
        size = (w[active] + step[active]).flatten(1).norm(dim=1)
        change[active] = (step[active].flatten(1).norm(dim=1) + left[active]) / size
        rounding[active] = noise[active] / size
        decrement[active] = -count * (gradient[active] * step[active]).sum((1, 2))
        moved = times(x, step[active])
        length = _step_length(logits[active], moved, y[active], basis)
        w[active] += length[:, None, None] * step[active]
        logits[active] += length[:, None, None] * moved
        gradient[active], p[active] = gradients(logits[active], y[active])
        arrived = final & (change <= TOLERANCE) & (decrement <= DECREMENT) & ~stopped
        converged |= arrived & (rounding <= ROUNDING)
        lost = torch.zeros_like(stopped)
        lost[active] = length == 0
        # a bound that is too wide is no verdict where the change itself can be computed
        stopped |= converged | lost | (arrived & (stiff | (not factored))) | (stiff & (rounding > 10 * ROUNDING))
        stiff |= arrived & ~stopped
    full = w if span is None else span @ w
    return Newton(full @ basis.T, change, decrement, rounding, converged, taken)


def _fisher(u: Tensor, p: Tensor, basis: Tensor) -> Tensor:
    """``B' (diag p - p p') B u`` for every row."""
    full = p * (u @ basis.T)
    return (full - p * full.sum(-1, keepdim=True)) @ basis


def _factored(x: Float[Tensor, "N D"], p: Float[Tensor, "N K"], basis: Float[Tensor, "K C"], right: Float[Tensor, "R D C"]) -> Tensor | None:
    """Solutions of ``H v = b`` for every b of `right` by one Cholesky factor; None where rounding leaves nothing positive of H."""
    features, columns = x.shape[1], basis.shape[1]
    # seen from the likeliest class, so that what is small keeps its digits
    seen = basis - basis[p.argmax(1)][:, None, :]
    mean = torch.einsum("nk,nkc->nc", p, seen)
    information = (torch.einsum("nk,nkc,nke->nce", p, seen, seen) - mean[:, :, None] * mean[:, None, :]) / len(x)
    hessian = x.new_zeros(columns, features, columns, features)
    blocks = torch.arange(features).tensor_split(4 if features >= 4 * COLUMNS else 1)  # only the lower triangle is read
    for a in range(columns):
        for b in range(a + 1):
            weighted = x * information[:, a, b, None]
            for block in blocks:
                end = int(block[-1]) + 1 if a == b else features
                hessian[a, block[0] : block[-1] + 1, b, :end] = weighted[:, block[0] : block[-1] + 1].T @ x[:, :end]
    factor, wrong = torch.linalg.cholesky_ex(hessian.view(columns * features, -1))
    if bool(wrong):
        return None
    flat = right.permute(2, 1, 0).reshape(columns * features, -1)
    return torch.cholesky_solve(flat, factor).view(columns, features, -1).permute(2, 1, 0)


@dataclass(frozen=True)
class _Solved:
    """Solutions [M, D, C], the norm of each residual under the inverse preconditioner, the smallest Ritz value met, and whether the tolerance was reached."""

    solution: Tensor
    residual: Tensor
    smallest: Tensor
    reached: Tensor


def _conjugate_gradients(
    apply: Callable[[Tensor, Tensor], Tensor], precondition: Callable[[Tensor], Tensor], b: Tensor, tolerance: Tensor, most: int
) -> _Solved:
    """Preconditioned conjugate gradients on M systems [M, D, C] at once, each until its residual is below its tolerance times that of zero.

    ``apply(v, places)`` multiplies v by the systems of those places: the ones still at work.
    """
    x, r = torch.zeros_like(b), b.clone()
    z = precondition(r)
    d = z.clone()
    rz = (r * z).sum((1, 2))
    goal = tolerance.square() * rz
    lengths, ratios = [], []
    place = torch.arange(len(b), device=b.device)
    for _ in range(most):
        ad = apply(d[place], place)
        alpha = rz[place] / (d[place] * ad).sum((1, 2))
        x[place] += alpha[:, None, None] * d[place]
        r[place] -= alpha[:, None, None] * ad
        z = precondition(r[place])
        new = (r[place] * z).sum((1, 2))
        beta = new / rz[place]
        lengths.append(torch.full_like(rz, math.nan).index_copy(0, place, alpha))
        ratios.append(torch.full_like(rz, math.nan).index_copy(0, place, beta))
        d[place] = z + beta[:, None, None] * d[place]
        rz[place] = new
        place = place[new > goal[place]]
        if len(place) == 0:
            break
    smallest = torch.stack([_least_ritz(a[~a.isnan()], c[~a.isnan()]) for a, c in zip(torch.stack(lengths, 1), torch.stack(ratios, 1), strict=True)])
    return _Solved(x, rz.clamp_min(0).sqrt(), smallest, rz <= goal)


def _least_ritz(lengths: Tensor, ratios: Tensor) -> Tensor:
    """The smallest eigenvalue of the tridiagonal matrix that the step lengths and ratios of conjugate gradients make: an estimate of the system's."""
    diagonal = 1 / lengths
    diagonal[1:] += ratios[:-1] / lengths[:-1]
    beside = ratios[:-1].clamp_min(0).sqrt() / lengths[:-1]
    return torch.linalg.eigvalsh(torch.diag(diagonal) + torch.diag(beside, 1) + torch.diag(beside, -1))[0]


def _step_length(logits: Tensor, change: Tensor, y: Tensor, basis: Tensor) -> Tensor:
    """How far to go along `change`, for each problem: the whole step where that ends near the minimum of the loss on its line, else to just before the minimum,
    where a tenth of the first slope is left, and never further than twice the step; 0 where rounding shows no way down.

    The slope of a convex loss grows, so the loss falls wherever the slope is still negative, and over a whole step where the slopes at its end and its middle sum
    to nothing or less. Losses themselves would not do: their differences drown in rounding long before the weights are right. Much longer steps would do harm:
    they take rows whose information has vanished to the wrong side, from where no step sees them.
    """

    def slope(step: Tensor) -> Tensor:
        p = ((logits + step[:, None, None] * change) @ basis.T).softmax(-1)
        return (((p - y) @ basis) * change).sum((1, 2))

    one = logits.new_ones(len(logits))
    enough, end = 0.1 * slope(torch.zeros_like(one)).abs(), slope(one)
    taken = (end.abs() <= enough) & (end + slope(one / 2) <= 0)
    low, high = torch.where(taken | (end <= 0), one, 0.0), torch.where(end <= 0, 2 * one, one)
    for _ in range(30):
        if bool(taken.all()):
            break
        middle = (low + high) / 2
        found = slope(middle)
        below = ~taken & (found <= 0)
        low, high = torch.where(below, middle, low), torch.where(taken | below, high, middle)
        taken |= below & (found.abs() <= enough)
    return low


def _contrast(classes: int, device: torch.device) -> Float[Tensor, "K C"]:
    """An orthonormal basis [K, K - 1] of what sums to zero over classes."""
    matrix = torch.eye(classes, dtype=torch.float64, device=device) - 1 / classes
    return torch.linalg.svd(matrix)[0][:, : classes - 1].contiguous()


def newton_operations(features: int, classes: int, rows: int, *, nearly_hard: bool = False) -> float:
    """Floating-point operations of one problem of `newton`, measured on linear teachers of two classes: about 60 products with X, its transpose and the
    preconditioner in all; where labels are `nearly_hard` 350, and 50 factors where those are allowed, whose operations run about twice as fast."""
    columns, rank = classes - 1, min(features, rows)
    made = (350 if nearly_hard else 60) * (4.0 * rows * rank + 2.0 * rank**2) * columns
    if nearly_hard and rank * columns <= DENSE:
        made += 50 * (1.25 * rows * (rank * columns) ** 2 + (rank * columns) ** 3 / 3) / 2
    return made
