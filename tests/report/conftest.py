"""A realistic run to report: its record and its distilled set, in any number of classes and any shape."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from limbeck.types.distilled import DistilledDataset
from limbeck.types.evaluation import Evaluation
from limbeck.types.labels import Labels
from limbeck.types.pixels import PixelSpace
from limbeck.types.recipe import Recipe

Run = tuple[dict[str, Any], DistilledDataset]
RECIPE = Recipe(schedule="step", decay_at=(0.5,), epochs=300)


def make_run(
    counts: tuple[int, ...] = (10,) * 10,
    shape: tuple[int, int, int] = (1, 8, 8),
    *,
    classes: tuple[str, ...] | None = None,
    kind: str = "probability",
    students: tuple[int, int, int] = (1, 1, 5),
    seed: int = 0,
) -> Run:
    """The record and the set of a run whose numbers look like those of a real one."""
    random, numbers = np.random.default_rng(seed), len(counts)
    owners = np.repeat(np.arange(numbers), counts)
    classes = classes or tuple(str(number) if numbers <= 10 else f"{number // 10}|{number % 10}" for number in range(numbers))
    images = _images(owners, numbers, shape, random)
    near = -0.9 * np.abs(np.subtract.outer(np.arange(numbers), np.arange(numbers)) % 7) - random.uniform(0, 3, (numbers, numbers))
    logits = torch.from_numpy(near[owners] + random.normal(0, 0.8, (len(owners), numbers)) + 3.0 * np.eye(numbers)[owners])
    dense = {"probability": logits.softmax(1), "log-probability": logits.log_softmax(1)}.get(kind, logits).float()
    soft = Labels.hard(torch.from_numpy(owners), numbers) if kind == "hard" else Labels.encode(dense, kind=kind, expert="ab" * 32)
    dataset = DistilledDataset(torch.from_numpy(images), torch.from_numpy(owners), soft, PixelSpace(), classes, RECIPE, provenance={"seed": seed})
    size = dataset.bytes

    def evaluated(name: str, role: str, mean: float, spread: float, model: str = "convnet", protocol: str = "dc/1") -> dict[str, Any]:
        accuracy = mean + spread * random.normal(size=students)
        return Evaluation(
            name=name,
            protocol=protocol,
            model=model,
            accuracy=accuracy,
            loss=2 - 2 * accuracy,
            worst_class=accuracy - 0.3,
            bytes={**size, "labels": len(owners), "total": size["images"] + len(owners)} if role == "random-hard" else size,
            images=len(owners),
            sets=(dataset.digest,),
            test_digest="cd" * 32,
            test_images=10_000,
            plan={"device": "cpu", "threads": 2},
            recipe=RECIPE.model_dump(mode="json"),
            seed=seed,
        ).to_dict() | {"role": role}

    record = {
        "format": 1,
        "title": "fashion-mnist, 10 images per class, random-real",
        "command": "limbeck distill fashion-mnist --ipc 10",
        "source": {
            "name": "fashion-mnist",
            "shape": list(shape),
            "classes": list(classes),
            "train": 54_000,
            "validation": 6_000,
            "test": 10_000,
            "notes": ["validation is a stratified tenth of the training part"],
        },
        "method": "random-real",
        "label_rule": {"kind": "hard" if kind == "hard" else "soft", "temperature": 1.0, "top_k": None, "renormalize": True, "precision": "float32"},
        "counts": list(counts),
        "bytes": size,
        "full_data_bytes": 60_000 * int(np.prod(shape)),
        "digest": dataset.digest,
        "seed": seed,
        "evaluations": [
            evaluated("this set", "distilled", 0.774, 0.005),
            evaluated("random real images, soft labels", "random-soft", 0.769, 0.006),
            evaluated("random real images, hard labels", "random-hard", 0.732, 0.008),
        ],
        "expert": make_expert(),
        "plan": {"device": "cpu", "strategy": "compiled", "precision": "float32", "chunk": 64, "threads": 2, "reason": "two cores"},
        "provenance": {"method": {"name": "random-real"}, "seed": seed, "expert": "ab" * 32},
        "seconds": {"expert": 120.2, "choose": 60.1, "evaluate": 300.0, "total": 500.0},
        "machine": "2 cores, x86_64, torch 2.13.0",
        "versions": {"limbeck": "0.1.0", "torch": "2.13.0"},
    }
    return record, dataset


def make_expert() -> dict[str, Any]:
    """The expert part of a record: twelve snapshots over five epochs and a choice in three rungs."""
    steps = [0, 3, 6, 13, 26, 52, 105, 211, 422, 633, 844, 1055]
    accuracy = [0.1, 0.33, 0.5, 0.63, 0.69, 0.74, 0.80, 0.86, 0.88, 0.892, 0.897, 0.901]
    entropy = [2.29, 2.16, 1.94, 1.45, 1.08, 0.83, 0.61, 0.46, 0.34, 0.29, 0.26, 0.24]
    quarter = [0.11, 0.35, 0.5, 0.6, 0.655, 0.69, 0.72, 0.738, 0.731, 0.722, 0.717, 0.712]
    trials = [
        {"candidate": step, "rung": 0, "fraction": 0.25, "accuracies": [value], "mean": value} for step, value in zip(steps, quarter, strict=True)
    ]
    for step, value in {105: 0.741, 211: 0.758, 422: 0.754, 633: 0.741}.items():
        trials.append({"candidate": step, "rung": 1, "fraction": 0.5, "accuracies": [value], "mean": value})
    for step, value in {211: 0.774, 422: 0.766}.items():
        trials.append({"candidate": step, "rung": 2, "fraction": 1.0, "accuracies": [value - 0.004, value + 0.004], "mean": value})
    return {
        "model": "convnet",
        "recipe": RECIPE.model_dump(mode="json"),
        "count": 1,
        "snapshots": [
            {"step": step, "epoch": step / 211, "accuracy": value, "loss": 2.3 - 2.2 * value, "entropy": nats}
            for step, value, nats in zip(steps, accuracy, entropy, strict=True)
        ],
        "chosen_step": 211,
        "chosen_by": "successive halving on validation",
        "trials": trials,
        "validation_images": 2000,
        "test_accuracy": 0.858,
        "last_step": 1055,
        "last_test_accuracy": 0.899,
    }


def _images(owners: np.ndarray, classes: int, shape: tuple[int, int, int], random: np.random.Generator) -> np.ndarray:
    """Scikit-learn's digits; with more than ten classes the two digits of the class number side by side."""
    digits, (channels, height, width) = load_digits(), shape

    def digit(number: int) -> np.ndarray:
        picture = digits.images[random.choice(np.flatnonzero(digits.target == number))] * (255 / 16)
        return picture.astype(np.uint8)

    def fitted(picture: np.ndarray) -> np.ndarray:
        enlarged = np.kron(picture, np.ones((max(1, height // 8), max(1, width // picture.shape[1])), np.uint8))
        return enlarged[:height, :width]

    pictures = []
    for owner in owners.tolist():
        gray = fitted(digit(owner % 10) if classes <= 10 else np.hstack([digit(owner // 10 % 10), digit(owner % 10)]))
        tint = random.uniform(0.4, 1.0, channels) if channels > 1 else np.ones(1)
        noise = random.integers(0, 40, (channels, height, width)) if channels > 1 else 0
        pictures.append(np.clip(gray[None] * tint[:, None, None] + noise, 0, 255).astype(np.uint8))
    return np.stack(pictures)


@pytest.fixture
def run() -> Run:
    return make_run()


@pytest.fixture(name="make_run", scope="session")
def _make_run() -> Callable[..., Run]:
    return make_run
