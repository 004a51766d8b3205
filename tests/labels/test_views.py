"""Labels per view: the expert's logits of the very pictures that are replayed, what they cost, and what training gets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.small import PLAN, distilled, gaussians, network

from limbeck import store
from limbeck.data.pixels import normalize
from limbeck.data.views import LabeledViews
from limbeck.errors import FileFormatError, OptionError
from limbeck.experts.expert import Ensemble, Expert
from limbeck.labels import views as label_views_module
from limbeck.labels.rules import LabelRule
from limbeck.labels.views import label_views
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.losses import soft_cross_entropy, tempered_kl
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels
from limbeck.types.pixels import PixelSpace
from limbeck.types.views import ViewSpec

TABLE = gaussians(4, classes=5)
SPACE = normalize(TABLE)
CPU = torch.device("cpu")
EVERY = torch.arange(20)


def expert(seed: int = 0, scale: float = 3.0) -> Expert:
    """A linear teacher."""
    net = network(classes=5)
    state = {name: scale * tensor for name, tensor in net.init(Streams(seed)).items()}
    return Expert(net, state, SPACE, 0, f"teacher {seed}")


def labeled(rule: LabelRule | None = None, views: int = 3, teacher: Any = None, **changes: Any) -> DistilledDataset:
    given = {"augment": "resized_crop+flip+cutmix", "seed": 11, "plan": PLAN, **changes}
    return label_views(distilled(TABLE, pixels=SPACE), rule or LabelRule(), teacher or expert(), views=views, **given)


def logits_of_replay(made: DistilledDataset, epoch: int, teacher: Expert | None = None) -> torch.Tensor:
    """float64 logits of the pictures that training sees."""
    teacher = teacher or expert()
    images, _ = Examples.of_distilled(made).view_batch(EVERY, epoch, CPU)
    return images.flatten(1).double() @ teacher.state["head.weight"].double().T + teacher.state["head.bias"].double()


def test_labels_are_the_experts_logits_of_the_replayed_pictures() -> None:
    made = labeled()
    assert (made.labels.kind, made.labels.views, made.labels.expert) == ("logit", 3, "teacher 0")
    assert made.views is not None
    assert (made.views.count, made.views.seed, made.views.augment) == (3, 11, "resized_crop+flip+cutmix")
    assert made.labels.values is not None
    for epoch in range(3):
        assert torch.allclose(made.labels.values[epoch].double(), logits_of_replay(made, epoch), atol=1e-5)
    assert not torch.allclose(made.labels.values[0], made.labels.values[1], atol=0.1)


@pytest.mark.parametrize("images", ["float32", "float16"])
def test_images_in_network_space_are_labeled_as_they_are_stored(images: str) -> None:
    base = distilled(TABLE, images=SPACE(TABLE.images).to(getattr(torch, images)), pixels=PixelSpace(SPACE.steps, "network"))
    made = label_views(base, LabelRule(), expert(), views=2, augment="crop_flip+mixup", seed=1, plan=PLAN)
    assert made.labels.values is not None
    assert torch.allclose(made.labels.values[1].double(), logits_of_replay(made, 1), atol=1e-5)


def test_an_ensemble_gives_the_mean_of_its_members() -> None:
    made = labeled(teacher=Ensemble((expert(0), expert(1))))
    mean = (logits_of_replay(made, 2) + logits_of_replay(made, 2, expert(1))) / 2
    assert torch.allclose(made.labels.dense()[2].double(), mean, atol=1e-5)


def test_how_many_pictures_are_labeled_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = labeled(views=5)
    shown: list[int] = []

    class Watching(Expert):
        def logits_of(self, images: Any, pixels: PixelSpace, plan: Any) -> torch.Tensor:
            shown.append(len(images))
            return super().logits_of(images, pixels, plan)

    teacher = expert()
    watching = Watching(teacher.network, teacher.state, teacher.pixels, teacher.step, teacher.digest)
    monkeypatch.setattr(label_views_module, "_AT_ONCE", 45)  # two views of 20 images, so memory does not grow with the views
    assert torch.allclose(labeled(views=5, teacher=watching).labels.dense(), whole.labels.dense(), atol=1e-6)
    assert shown == [40, 40, 20]


RULES = {
    "float32": LabelRule(),
    "float16": LabelRule(precision="float16"),
    "tempered": LabelRule(temperature=4.0),
    "top-2 float16": LabelRule(top_k=2, precision="float16"),
    "top-2 as it is": LabelRule(top_k=2, renormalize=False),
    "uint8": LabelRule(precision="uint8"),
    "top-3 uint8": LabelRule(top_k=3, precision="uint8"),
}
BYTES = {
    "float32": 20,
    "float16": 10,
    "tempered": 20,
    "top-2 float16": 2 * (2 + 1),
    "top-2 as it is": 2 * (4 + 1),
    "uint8": 5 + 4,
    "top-3 uint8": 3 * 2 + 4,
}


@pytest.mark.parametrize("name", RULES)
def test_every_way_of_storing_keeps_the_distribution_and_counts_its_bytes(name: str, tmp_path: Path) -> None:
    rule = RULES[name]
    made = labeled(rule)
    made.save(tmp_path / "set.safetensors")
    again = DistilledDataset.load(tmp_path / "set.safetensors")
    _, tensors = store.load(tmp_path / "set.safetensors", "distilled dataset")
    # three views of twenty images, and an owner class for each image
    assert made.bytes["labels"] == again.bytes["labels"] == 3 * 20 * BYTES[name] + 20
    assert again.bytes["total"] == sum(tensor.nbytes for tensor in tensors.values())
    assert (again.digest, again.views, again.labels.temperature) == (made.digest, made.views, rule.temperature)
    exact = (logits_of_replay(made, 1) / rule.temperature).softmax(1)
    if rule.top_k:
        exact = exact * torch.zeros_like(exact).scatter(1, exact.topk(rule.top_k).indices, 1)
        exact = exact / exact.sum(1, keepdim=True) if rule.renormalize else exact
    _, rows = Examples.of_distilled(again).view_batch(EVERY, 1, CPU)
    tolerance = {"float32": 1e-6, "float16": 2e-3, "uint8": 1 / 255}[rule.precision]
    assert torch.allclose(rows.double(), exact, atol=tolerance)
    assert made.labels.kind == ("logit" if name in ("float32", "float16", "tempered") else "probability")


def test_the_tempered_loss_on_replayed_rows_is_that_on_the_experts_logits() -> None:
    made = labeled(LabelRule(precision="float16"), teacher=expert(scale=30.0))
    _, rows = Examples.of_distilled(made).view_batch(EVERY, 0, CPU)
    assert made.labels.values is not None
    teacher, student = made.labels.values[0].double(), torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    assert float((teacher.amax(1) - teacher.amin(1)).max()) > 20  # probabilities down to 1e-9
    for temperature in (1.0, 4.0, 20.0):
        target = (teacher / temperature).softmax(1)
        expected = (target * (target.log() - (student.double() / temperature).log_softmax(1))).sum()
        torch.testing.assert_close(tempered_kl(temperature)(student, rows).double(), expected, rtol=1e-5, atol=1e-6)
    expected = -(teacher.softmax(1) * student.double().log_softmax(1)).sum()
    torch.testing.assert_close(soft_cross_entropy(student, rows).double(), expected, rtol=1e-5, atol=1e-6)


def test_a_training_batch_takes_views_in_turn_and_rows_in_order() -> None:
    made = labeled()
    examples = Examples.of_distilled(made)
    picked = torch.tensor([7, 7, 0])
    for epoch in (0, 2, 3, 301):
        images, rows = examples.view_batch(picked, epoch, CPU)
        all_images, all_rows = examples.view_batch(EVERY, epoch % 3, CPU)
        assert torch.equal(images, all_images[picked])
        assert torch.equal(rows, all_rows[picked])
    with pytest.raises(OptionError, match="^these examples have one label for each image and no views to replay; use batch$"):
        Examples.of_table(TABLE, SPACE).view_batch(picked, 0, CPU)


def test_one_label_for_each_image_is_the_mean_distribution_over_the_views() -> None:
    made = labeled(LabelRule(precision="float16"))
    mean = made.labels.dense().double().softmax(-1).mean(0)
    assert torch.allclose(made.targets().double(), mean, atol=1e-6)
    assert torch.equal(Examples.of_distilled(made).batch(EVERY, CPU)[1], made.targets())
    hard = made.with_hard_labels()
    assert (hard.views, hard.labels.kind, hard.targets().argmax(1).tolist()) == (None, "hard", TABLE.labels.tolist())


def test_sets_without_views_are_stored_as_before() -> None:
    header, old = distilled(TABLE)._header(), {"kind", "format", "payload", "classes", "labels", "pixels", "recipe", "step_size", "architecture"}
    assert header["format"] == 1
    assert set(header) == old | {"provenance"}
    assert labeled()._header()["format"] == 2


def test_a_file_of_format_1_is_still_read(tmp_path: Path) -> None:
    header = {
        "kind": "distilled dataset",
        "format": 1,
        "payload": "plain",
        "classes": ["a", "b"],
        "labels": {"classes": 2, "kind": "probability", "temperature": 1.0, "sums_to_one": True, "expert": None},
        "pixels": {"steps": [], "stored": "raw"},
        "recipe": {"lr": 0.1, "steps": 3},
        "step_size": None,
        "architecture": None,
        "provenance": {},
    }
    tensors = {"images": torch.zeros(1, 1, 2, 2), "owners": torch.zeros(1, dtype=torch.uint8), "labels.values": torch.tensor([[0.25, 0.75]])}
    store.save(tmp_path / "old.safetensors", header, tensors)
    made = DistilledDataset.load(tmp_path / "old.safetensors")
    assert made.views is None
    assert made.targets().tolist() == [[0.25, 0.75]]
    assert LabeledViews.of(made) is None


def test_views_and_labels_must_belong_together() -> None:
    made, spec = labeled(), ViewSpec(seed=0, count=2, augment="flip", fingerprint="")
    for labels, views, got in (
        (made.labels, None, "labels of 3 views but a description of no views"),
        (made.labels, spec, "labels of 3 views but a description of 2 views"),
        (Labels.hard(made.owners, 5), spec, "labels of no views but a description of 2 views"),
    ):
        with pytest.raises(FileFormatError, match=f"^{got}; use an intact file$"):
            distilled(TABLE, labels, views=views)


def test_one_view_of_labels_is_read_without_the_others() -> None:
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 6, 3))).float()
    labels = Labels(3, "logit", values)
    rows = torch.tensor([5, 0])
    assert torch.equal(labels.of_view(2, rows).dense(), values[2, rows])
    assert torch.allclose(labels.of_view(2, rows).probabilities(), values[2, rows].softmax(1))
    kept = Labels(3, "logit", torch.tensor([[2.0, 1.0]]), torch.tensor([[2, 0]]))
    assert torch.allclose(kept.probabilities(), torch.tensor([[1 / (1 + np.e), 0, np.e / (1 + np.e)]]).float())
    logs = Labels(3, "log-probability", torch.tensor([[-0.5]]), torch.tensor([[1]]))
    assert torch.allclose(logs.probabilities(), torch.tensor([[0, np.exp(-0.5), 0]]).float())
