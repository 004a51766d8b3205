"""The command line as a user meets it: sentences, exit codes, JSON, help."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.cli.running import run

from limbeck.cli import VERBS
from limbeck.evaluate.protocols import PROTOCOLS, Protocol
from limbeck.types.recipe import Recipe


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from limbeck.study.distill import distill
    from limbeck.study.options import DistillOptions

    out = tmp_path_factory.mktemp("run")
    distill("digits", DistillOptions(ipc="1", model="softmax", labels="hard", students=2, protocol="label-worth-short"), out)
    return out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["distil"], 'Unknown command "distil". Did you mean "distill"?'),
        (["distill"], "parameter SOURCE requires an argument"),
        (["distill", "digits", "--ipcc", "1"], "Unknown option: --ipcc. Did you mean --ipc?"),
        (["distill", "digitz", "--ipc", "1"], "unknown data source 'digitz', and no file or folder has that name; did you mean 'digits'?"),
        (["distill", "digits"], "a budget is needed; use --ipc N, --ipc proportional or --bytes SIZE"),
        (["distill", "digits", "--ipc", "one"], "--ipc needs a whole number or 'proportional', got 'one'"),
        (["distill", "digits", "--ipc", "1", "--students", "0"], "--students input should be greater than or equal to 1, got"),
        (["distill", "digits", "--ipc", "1", "--model", "convnett"], "did you mean 'convnet'?"),
        (["distill", "digits", "--ipc", "1", "--size", "8by8"], "a size looks like 64 or 32x48 (height x width), got '8by8'"),
        (["distill", "digits", "--ipc", "1", "--device", "warp"], "unknown device 'warp'; use auto, cpu, cuda or cuda:N"),
        (["distill", "./no-such-folder", "--ipc", "1"], "no file or folder at './no-such-folder'; check the path"),
        (["evaluate", "missing.safetensors"], "no such file: 'missing.safetensors'; check the path"),
        (["train", "missing.safetensors"], "no such file: 'missing.safetensors'; check the path"),
        (["score", "missing.safetensors"], "no such file: 'missing.safetensors'; check the path"),
        (["score", "missing.safetensors", "--students", "0"], "--students input should be greater than or equal to 1, got"),
        (["import", "missing.pt", "--pixel-space", "raw"], "no file or folder at 'missing.pt'; check the path"),
        (["import", "missing.pt"], "--pixel-space is needed, since no file of another program says how its images are to be read"),
        (["import", "missing.pt", "--pixel-space", "raw", "--model", "lenett"], "did you mean 'lenet'?"),
        (["compare"], "compare needs one or more run folders or result files, got none"),
        (["report", "nowhere"], "no results at 'nowhere'"),
        (["ls", "sauces"], "unknown list 'sauces'; did you mean 'sources'?"),
        (["explain", "mtt@cifar10-ipc11"], "method mtt has no recipe 'cifar10-ipc11'; did you mean 'cifar10-ipc1'? known"),
        (["explain", "herdin"], "nothing is named 'herdin'; did you mean 'herding'?"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(arguments, monkeypatch, capsys)
    assert code == 2
    assert out == ""
    assert sentence in err
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1
    assert lines[0].startswith("limbeck: ")


def _folder(root: Path, sizes: dict[str, list[tuple[int, int]]]) -> Path:
    for name, shapes in sizes.items():
        (root / name).mkdir(parents=True)
        for i, shape in enumerate(shapes):
            Image.fromarray(np.full((*shape, 3), 40 * i, dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def test_mistakes_in_an_image_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run(["distill", str(tmp_path / "empty"), "--ipc", "1"], monkeypatch, capsys)[0] == 2
    ragged = _folder(tmp_path / "ragged", {"a": [(8, 8)] * 6, "b": [(8, 8)] * 5 + [(9, 8)]})
    code, _, err = run(["distill", str(ragged), "--ipc", "1"], monkeypatch, capsys)
    assert code == 2
    assert "--size" in err
    broken = _folder(tmp_path / "broken", {"a": [(8, 8)] * 6, "b": [(8, 8)] * 6})
    (broken / "b" / "3.png").write_bytes(b"not a picture")
    code, _, err = run(["distill", str(broken), "--ipc", "1"], monkeypatch, capsys)
    assert code == 2
    assert "3.png" in err
    assert "--skip-corrupt" in err


def test_an_altered_and_a_truncated_file_are_refused(
    distilled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    content = bytearray((distilled / "distilled.safetensors").read_bytes())
    (tmp_path / "short.safetensors").write_bytes(content[:-50])
    content[-5] ^= 1
    (tmp_path / "altered.safetensors").write_bytes(content)
    code, _, err = run(["evaluate", str(tmp_path / "short.safetensors")], monkeypatch, capsys)
    assert (code, "is not a readable safetensors file" in err) == (2, True)
    code, _, err = run(["evaluate", str(tmp_path / "altered.safetensors")], monkeypatch, capsys)
    assert (code, "was altered after it was written" in err) == (2, True)


def test_json_is_all_that_stdout_gets(distilled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        ["evaluate", str(distilled / "distilled.safetensors"), "--protocol", "label-worth-short", "--students", "2", "--json"], monkeypatch, capsys
    )
    assert code == 0
    assert [row["role"] for row in json.loads(out)["evaluations"]] == ["distilled", "random-hard"]


def test_compare_and_ls_and_explain_speak(distilled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["compare", str(distilled), "--json"], monkeypatch, capsys)
    assert code == 0
    assert json.loads(out)[0]["n"] == 2
    code, out, _ = run(["ls", "protocols"], monkeypatch, capsys)
    assert code == 0
    assert "label-worth-short" in out
    code, out, _ = run(["explain", "random-real"], monkeypatch, capsys)
    assert "2406.10485" in out
    code, out, _ = run(["explain", "mtt"], monkeypatch, capsys)
    assert "\nRecipes:\n" in out
    assert "  cifar10-ipc10: student_steps=30, expert_epochs=2, max_start_epoch=20" in out
    code, out, _ = run(["explain", "mtt@cifar10-ipc10"], monkeypatch, capsys)
    assert "It sets student_steps=30" in out
    assert "\n  steps: 5000\n" in out
    code, out, _ = run(["explain", str(distilled / "distilled.safetensors")], monkeypatch, capsys)
    assert "10 images of 10 classes, 1x8x8, uint8" in out


def test_a_foreign_set_is_imported_evaluated_and_scored(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(lr=0.05, steps=20)
    monkeypatch.setitem(PROTOCOLS, "tiny", Protocol(name="tiny", version=1, recipe=recipe, source="this test", note="twenty steps"))
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.save({"images": images, "labels": torch.arange(20) % 10}, "theirs.pt")
    code, out, err = run(["import", "theirs.pt", "--pixel-space", "raw", "--source", "digits", "--model", "softmax"], monkeypatch, capsys)
    assert code == 0, err
    assert "theirs-imported.safetensors: 20 images of 10 classes, 1x8x8, float32" in out
    short = ["--protocol", "tiny", "--students", "2"]
    code, out, _ = run(["evaluate", "theirs-imported.safetensors", *short, "--labels", "both"], monkeypatch, capsys)
    assert code == 0
    assert "this set" in out
    assert "record: theirs-imported-tiny-both.json" in out
    given = ["--full-accuracy", "0.95", "--which", "label", "--search-students", "1"]
    code, out, _ = run(["score", "theirs-imported.safetensors", *short, *given], monkeypatch, capsys)
    assert code == 0
    for word in ("HLR", "IOR", "alpha", "LRS", "given", "0.269 means no better and no worse", "2 students an arm"):
        assert word in out
    code, out, _ = run(["score", "theirs-imported.safetensors", *short, *given, "--json"], monkeypatch, capsys)
    assert json.loads(out)["score"]["label_robust"]["real_hard_from"] == "given"


def test_a_hostile_file_is_refused_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, ("owned",)

    torch.save({"data": [[Payload(), Payload()]]}, "bad.pt")
    code, out, err = run(["import", "bad.pt", "--pixel-space", "raw"], monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert err.startswith("limbeck: 'bad.pt' holds objects beyond tensors")
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pt"]


def test_report_is_written_again(distilled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(["report", str(distilled), "--out", str(tmp_path)], monkeypatch, capsys)
    assert code == 0
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert str(tmp_path / "report.html") in out.replace("\n", "")


def test_help_of_every_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        code, out, _ = run([verb, "--help"], monkeypatch, capsys)
        assert code == 0
        assert f"Usage: limbeck {verb}" in out


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'pydantic', 'numpy', 'altair'}"
    code = (
        "import sys\nfrom limbeck.cli import main\nsys.argv = ['limbeck', '--help']\ntry: main()\nexcept SystemExit: pass\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
