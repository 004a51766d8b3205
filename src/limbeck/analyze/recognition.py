"""Do networks that were trained on real images recognize the distilled ones?"""

import importlib
import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.analyze.statistics import over_repeats
from limbeck.analyze.students import accuracy_of, classes_along, draw_balanced, images_of_set_in
from limbeck.analyze.subject import REAL_RECIPE, Analysis, AnalysisOptions, Plot, Size, Subject, Work, early_steps
from limbeck.data.tables import Subset
from limbeck.experts.expert import Expert
from limbeck.models import parse_model
from limbeck.progress import Reporter
from limbeck.train.network import Network, State
from limbeck.types.measurement import Measurement, Quantity


class RecognitionOptions(AnalysisOptions):
    """Which networks look, how they are trained, and what is drawn."""

    models: tuple[str, ...] = Field(
        ("convnet-tiny", "convnet"), min_length=1, description="networks trained on real images; the paper's others: resnet18, resnet32"
    )
    seeds: int = Field(3, ge=1, description="networks of each architecture")
    epochs: int = Field(2, ge=1, description="epochs of training on real images")
    snapshots: int = Field(12, ge=2, description="moments of that training at which the networks look, evenly on a logarithmic scale")
    lr: float = Field(REAL_RECIPE.lr, gt=0, description="learning rate of that training")
    batch_size: int = Field(REAL_RECIPE.batch_size, ge=1, description="batch size of that training")
    test_images: int | None = Field(2000, ge=1, description="test images to compare with; none: all")
    map_images: int = Field(30, ge=1, description="real images of each class in the map")


class Recognition(Analysis):
    """Accuracy of real-trained networks on the distilled images: the fraction ``1/N sum_i [argmax f(x_i) = owner_i]``, at the end and along their training.

    Claim to test: distilled images are recognized by networks that never saw them, and early in training (Yang, Zhu, Deng and Russakovsky 2024, "What is
    Dataset Distillation Learning?", arXiv 2406.04284, section 3). Accuracy on test images, by the same networks at the same steps, stands beside it.
    The map shows the embedding (what the head sees) of the distilled and of real training images, by the first network, on the two principal axes of the REAL
    images' embeddings, and by UMAP (McInnes, Healy and Melville 2018, arXiv 1802.03426) where that is installed. `distance_ratio` is the median distance of a
    distilled image's embedding to the nearest mapped real one, divided by the same median for real images among themselves: 1 where distilled images lie as
    real ones do, above where they lie apart.

    Departures from the paper: several seeds with intervals; training is shorter by default (the paper: 20 to 40 epochs); the figure's "ResNet-32" was a
    ResNet-34 in the published code, here it is the CIFAR ResNet-32.

    Cost: `models` x `seeds` trainings of `epochs` epochs on all real images, and a pass over validation and test images at each snapshot.
    """

    name = "recognition"
    title = "Recognition"
    summary = "Do networks that were trained on real images recognize the distilled ones?"
    version = 2
    Options = RecognitionOptions
    smoke: ClassVar[dict[str, Any]] = {
        "models": ("softmax", "mlp-d1-w16"),
        "seeds": 2,
        "epochs": 2,
        "snapshots": 4,
        "lr": 0.1,
        "batch_size": 16,
        "map_images": 5,
    }
    headline = ("recognized", "real_accuracy", "distance_ratio")
    plots = (
        Plot(
            "recognized_at",
            "Accuracy on the distilled images along training on real images",
            x="step",
            color="model",
            log=True,
            reading="A line that rises early says that the images show what networks learn first. Compare with the test images below.",
        ),
        Plot("real_accuracy_at", "Accuracy on test images at the same steps", x="step", color="model", log=True),
        Plot("recognized_of_class", "Accuracy on the distilled images of each class, last step", x="class", color="model", kind="heat"),
        Plot(
            "map",
            "Embeddings of distilled and real images, on two principal axes of the real ones",
            x="image",
            kind="scatter",
            color="map_class",
            shape="map_distilled",
            reading="Distilled images inside the cloud of their class look to this network like real ones; apart from all clouds, they do not.",
        ),
        Plot("umap", "The same by UMAP", x="image", kind="scatter", color="map_class", shape="map_distilled"),
    )

    def __init__(self, options: RecognitionOptions) -> None:
        self.options = options

    def work(self, size: Size) -> Work:
        """Training on all real images, and a look at the test images at every snapshot (a third of the arithmetic of training on them)."""
        options = self.options
        looks = options.snapshots * min(options.test_images or size.test, size.test) / 3
        return dict.fromkeys(options.models, options.seeds * (options.epochs * size.train + looks))

    def measure(self, subject: Subject, reporter: Reporter) -> Measurement:
        options, started = self.options, time.monotonic()
        test = subject.test_table(options.test_images)
        recipe = REAL_RECIPE.with_(epochs=options.epochs, lr=options.lr, batch_size=options.batch_size)
        steps = early_steps(recipe.total_steps(len(subject.train)), options.snapshots)
        owners = subject.dataset.owners.long()
        classes = len(subject.dataset.classes)
        shape = (len(options.models), options.seeds, len(steps))
        on_set, on_test = np.zeros(shape), np.zeros(shape)
        of_class = np.full((len(options.models), options.seeds, classes), np.nan)
        digests, first = [], None
        for m, model in enumerate(options.models):
            for seed in range(options.seeds):
                trajectory = subject.real_trajectory(reporter, model=model, number=seed, recipe=recipe, steps=steps)
                words = f"recognition: {model} {seed + 1} looks at {len(steps)} steps"
                seen = classes_along(subject, trajectory, {"test": test}, reporter, words)
                on_set[m, seed] = (seen["set"] == owners).double().mean(1).numpy()
                on_test[m, seed] = accuracy_of(seen["test"], test)
                last = (seen["set"][-1] == owners).double()
                for k in owners.unique().tolist():
                    of_class[m, seed, k] = float(last[owners == k].mean())
                digests.append(trajectory.last.digest)
                first = first or trajectory.at(trajectory.last.step)
        assert first is not None
        mapped, map_axes, notes = self._map(subject, first)
        if len(owners.unique()) < classes:
            notes.append(f"the set has images of {len(owners.unique())} of the {classes} classes; the others have no value")
        known = int(images_of_set_in(subject.dataset, subject.train).sum())
        if known:
            notes.append(f"{known} of the set's {len(owners)} images are training images of these networks, so recognizing them is no surprise")
        models = tuple(str(parse_model(model)) for model in options.models)
        quantities = {
            "recognized": over_repeats(on_set[..., -1], ("model",), "networks", "fraction of distilled images"),
            "real_accuracy": over_repeats(on_test[..., -1], ("model",), "networks", "fraction of test images"),
            "recognized_at": over_repeats(on_set.swapaxes(1, 2), ("model", "step"), "networks", "fraction of distilled images"),
            "real_accuracy_at": over_repeats(on_test.swapaxes(1, 2), ("model", "step"), "networks", "fraction of test images"),
            "recognized_of_class": Quantity(of_class.mean(1), ("model", "class"), "fraction of distilled images"),
            **mapped,
        }
        return Measurement(
            analysis=self.name,
            title=self.title,
            quantities=quantities,
            axes={"model": models, "step": steps, "class": subject.dataset.classes, **map_axes},
            settings={
                **options.model_dump(mode="json"),
                "distilled_images": len(owners),
                "test_images_used": len(test),
                "recipe": recipe.model_dump(mode="json"),
                "networks": digests,
                "map_model": models[0],
            },
            notes=tuple(notes),
            seconds=time.monotonic() - started,
        )

    def _map(self, subject: Subject, expert: Expert) -> tuple[dict[str, Quantity], dict[str, tuple[Any, ...]], list[str]]:
        if not hasattr(expert.network.module, "features"):
            return {}, {}, [f"{expert.network.spec} has no `features` method, so there is no map"]
        classes = len(subject.dataset.classes)
        generator = subject.streams[self.name].torch("map")
        among = images_of_set_in(subject.dataset, subject.train)
        real = Subset(subject.train, draw_balanced(subject.train, [self.options.map_images] * classes, generator, among))
        parts = {
            "distilled": subject.dataset.inputs(),
            "real": subject.pixels(real.read(range(len(real)))),
        }
        own, other = (_features(expert.network, expert.state, parts[name], subject.plan.device) for name in ("distilled", "real"))
        both = torch.cat([own, other])
        axes = principal_axes(other)
        spots = (both - other.mean(0)) @ axes
        owner = np.concatenate([subject.dataset.owners.numpy(), real.labels]).astype(float)
        marks = np.concatenate([np.ones(len(own)), np.zeros(len(other))])
        explained = float(spots[len(own) :].var(0).sum() / other.var(0).sum().clamp_min(1e-30)) if len(other) > 1 else float("nan")
        quantities = {
            "map": Quantity(spots.numpy(), ("image", "coordinate"), "embedding units"),
            "map_class": Quantity(owner, ("image",), "class number"),
            "map_distilled": Quantity(marks, ("image",), "1 for distilled images, 0 for real ones"),
            "map_variance": Quantity(np.array(explained), (), "fraction of the real embeddings' variance"),
            "distance_ratio": Quantity(np.array(nearest_ratio(own, other)), (), "ratio of median distances to the nearest real embedding"),
        }
        notes = []
        projected = _umap(both, subject.streams[self.name].seed("umap"))
        if projected is None:
            notes.append("UMAP is not installed, so the map is by principal axes alone; pip install 'limbeck[analysis]' for both")
        else:
            quantities["umap"] = Quantity(projected, ("image", "coordinate"), "UMAP units")
        return quantities, {"image": tuple(range(len(both))), "coordinate": ("first", "second")}, notes


def principal_axes(features: Float[Tensor, "N F"]) -> Float[Tensor, "F 2"]:
    """The two directions of largest variance, float64, each with its largest entry positive; zero columns where there are fewer."""
    centered = features.double() - features.double().mean(0)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    axes = torch.zeros(features.shape[1], 2, dtype=torch.float64)
    kept = directions[:2].T
    axes[:, : kept.shape[1]] = kept * kept.gather(0, kept.abs().argmax(0, keepdim=True)).sign()
    return axes


def nearest_ratio(own: Float[Tensor, "N F"], real: Float[Tensor, "M F"]) -> float:
    """Median distance from `own` to the nearest of `real`, over the median distance from `real` to its nearest other; NaN with fewer than two real ones.

    A real image that is itself in `own` is at distance 0 there, so a set made of the mapped images themselves would give 0.
    """
    if len(real) < 2:
        return float("nan")
    among = torch.cdist(real, real).fill_diagonal_(torch.inf).amin(1).median()
    return float(torch.cdist(own, real).amin(1).median() / among) if among > 0 else float("nan")


def _features(network: Network, state: State, images: Tensor, device: str) -> Float[Tensor, "N F"]:
    placed = {name: tensor.to(device) for name, tensor in state.items()}
    with torch.no_grad():
        return torch.cat([network.features(placed, part.to(device)).double().cpu() for part in images.split(64)])


def _umap(features: Tensor, seed: int) -> np.ndarray | None:
    with _global_random_states_kept():
        try:
            umap = importlib.import_module("umap")
        except Exception:  # an extra that fails on import is one that is not there
            return None
        reducer = umap.UMAP(n_neighbors=min(5, len(features) - 1), random_state=seed % 2**31, n_jobs=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a seed excludes threads, which are not asked for
            return np.asarray(reducer.fit_transform(features.numpy()), dtype=np.float64)


@contextmanager
def _global_random_states_kept() -> Iterator[None]:
    """UMAP draws from its own seed, but moves the global states on the way."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002 (to put it back)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
