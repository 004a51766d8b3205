import inspect
from pathlib import Path

import pytest
from tests.study.studies import SMALL

from limbeck.errors import DataError, OptionError
from limbeck.study.analyses import STUDY_ANALYSES
from limbeck.study.claims import CHECKS
from limbeck.study.graph import Builder, DataKey
from limbeck.study.kinds import KINDS
from limbeck.study.spec import Making, Scale, Study, moment

EDGE = {
    'over = ["ipc"]': ('ovr = ["ipc"]', "unknown key 'ovr' at arms.hard.ovr (line 18 of study.toml); did you mean 'over'? known: "),
    "students = 2": ("studnets = 2", "unknown key 'studnets' at scales.smoke.studnets (line 49 of study.toml); did you mean 'students'? known: "),
    'labels = { kind = "hard" }': (
        'labels = { kid = "hard" }',
        "unknown key 'kid' at arms.hard.labels.kid (line 20 of study.toml); did you mean 'kind'?",
    ),
    "epochs = 2": ("epoch = 2", "unknown key 'epoch' at scales.smoke.experts.main.epoch (line 40 of study.toml); did you mean 'epochs'?"),
    'cost = "seconds"\n': ("", "missing key 'cost' at scales.smoke (line 43 of study.toml); add it"),
    'task = "expert-score"': ('task = "expert-scores"', "unknown task 'expert-scores'; did you mean 'expert-score'?"),
    "epoch = [1, 2]": (
        "epoch = [1, 3]",
        "snapshots are kept at epochs 0 to 2 and at 1/2, 1/4 ... 1/32 of the first, got 3; use one of these, or more epochs at ",
    ),
    "ipc = [1, 4] }": ("ipc = [] }", "axis 'ipc' has no value at scales.smoke.axes.ipc (line 50 of study.toml); give it at least one"),
    "ipc = [1, 4]": ("ipc = [4, 4]", "axis 'ipc' has the value 4 twice at scales.smoke.axes.ipc (line 50 of study.toml); name each value once"),
    'over = ["epoch"]': (
        'over = ["epcoh"]',
        "arm 'expert' is crossed over 'epcoh', which scale 'smoke' does not set, at arms.expert.over (line 8 of study.toml)",
    ),
    'over = ["ipc", "epoch"]': (
        'over = ["ipcc", "epoch"]',
        "arm 'soft' is crossed over 'ipcc', which scale 'smoke' does not set, at arms.soft.over (line 12 of study.toml)",
    ),
    'ipc = "{ipc}"\nat': (
        'ipc = "one"\nat',
        "arms.soft.ipc (line 13 of study.toml): input should be a valid integer, unable to parse string as an integer or input should be 'all', got 'one'",
    ),
    'at = "{epoch}"\n\n': (
        'at = "{epcoh}"\n\n',
        "{epcoh} at arms.expert.at (line 9 of study.toml) is no axis of this arm and no value of scale 'smoke'; did you mean",
    ),
    'kind = "greater"': ('kind = "greatr"', "unknown check 'greatr'; did you mean 'greater'?"),
    'left = { arm = "hard", ipc = 4 }': (
        'left = { arm = "hard", ipc = 5 }',
        "axis 'ipc' has no value 5 at claims[0].check.left (line 26 of study.toml) (scale 'smoke'); it has 1, 4",
    ),
    "above = 0.5": ("abve = 0.5", "unknown key 'abve' at claims[1].check.abve (line 32 of study.toml); did you mean 'above'?"),
    'name = "curves"': ('name = "curve"', "unknown study analysis 'curve'; did you mean 'curves'?"),
    'x = "epoch"': ('xx = "epoch"', "unknown key 'xx' at analyses[0].options.xx (line 37 of study.toml); did you mean 'x'?"),
    'x = "epoch", color': (
        'x = "epochs", color',
        "'epochs' at analyses[0].options.x (line 37 of study.toml) is no axis to draw along (scale 'smoke'): the axes of soft are ipc, epoch; did you mean 'epoch'?",
    ),
    'color = "ipc"': (
        'color = "ipcs"',
        "'ipcs' at analyses[0].options.color (line 37 of study.toml) is no axis to draw along (scale 'smoke'): the axes of soft are ipc, epoch; did you mean 'ipc'?",
    ),
    'protocol = "dc"': ("protocol = 7", "scales.smoke.protocol (line 47 of study.toml): input should be a valid string, got 7"),
    'at = "{epoch}"\nlabels': ("at = nan\nlabels", "arms.soft.at (line 14 of study.toml): a number must be finite, got nan; write another"),
    "epoch = [1, 2], ipc": (
        "epoch = [1, inf], ipc",
        "scales.smoke.axes.epoch[1] (line 50 of study.toml): a number must be finite, got inf; write another",
    ),
    '{ kind = "soft" }': (
        '{ kind = "soft", temperature = inf }',
        "arms.soft.labels.temperature (line 15 of study.toml): a number must be finite, got inf; write another",
    ),
    '"soft" }': (
        '"soft", temperature = "inf" }',
        "arms.soft.labels.temperature (line 15 of study.toml): input should be a finite number, got 'inf' (scale 'smoke', cell ipc=1, epoch=1)",
    ),
    "ipc = 1 } }": ("ipc = 1 }, by = nan }", "claims[0].check.by (line 26 of study.toml): a number must be finite, got nan; write another"),
    "ipc = 1 } }\n": (
        "ipc = 1 }, by = true }\n",
        "claims[0].check.by (line 26 of study.toml): input should be a valid number, got True",
    ),
    "above = 0.5 }": ('above = "inf" }', "claims[1].check.above (line 32 of study.toml): input should be a valid number, got 'inf'"),
    "students =": (
        f"seed = {10**400}\nstudents =",
        "scales.smoke.seed (line 49 of study.toml): a whole number must fit into 64 bits, got a longer one; write a smaller one",
    ),
    'labels = { kind = "hard"': (
        'task = "analyze"\nlabels = { kind = "hard"',
        "an arm with task = \"analyze\" needs analyses, and 'hard' names none, at arms.hard (line 17 of study.toml); add for example analyses = ",
    ),
    'source = "digits"': (
        'pixels = "normalise"\nsource = "digits"',
        "unknown pixel space 'normalise'; did you mean 'normalize'? known: normalize, raw, zca-frepo, zca-kip, zca-mtt, at scales.smoke.pixels (line 44 ",
    ),
    'source = "digits"\n': (
        'source = "digits"\nopen = { validation = 1.5 }\n',
        "validation needs a fraction 0 <= f < 1 of train, got 1.5, at scales.smoke.open.validation (line 45 of study.toml); use 0.1",
    ),
    '"digits"\n': (
        '"digits"\nopen = { size = "32by48" }\n',
        "a size looks like 64 or 32x48 (height x width), got '32by48', at scales.smoke.open.size (line 45 of study.toml)",
    ),
    "question =": ("question", "study.toml is not TOML: expected '=' after a key in a key/value pair (at line 3, column 10); mend that place"),
}


def _plan(content: str) -> None:
    Builder(Study.parse(content), "smoke", DataKey.unseen("normalize"), threads=1).graph()


@pytest.mark.parametrize("old", EDGE)
def test_a_mistake_is_one_sentence_with_its_place(old: str) -> None:
    new, sentence = EDGE[old]
    assert old in SMALL
    with pytest.raises(OptionError) as refused:
        _plan(SMALL.replace(old, new, 1))
    assert str(refused.value).startswith(sentence)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('protocol = "dc"', 'protocol = "dcc"', "unknown protocol 'dcc'; did you mean 'dc'?"),
        ("lr = 0.1", "lr = true", "scales.smoke.recipe.lr (line 48 of study.toml): a number is wanted, got true; write one"),
        ("lr = 0.1", "lrr = 0.1", "unknown key 'lrr' at scales.smoke.recipe.lrr (line 48 of study.toml); did you mean 'lr'?"),
        (
            'labels = { kind = "soft" }',
            'labels = { kind = "soft" }\ntransforms = ["swp:rank=2"]',
            "unknown label transform 'swp'; did you mean 'swap'?",
        ),
        (
            'labels = { kind = "soft" }',
            'labels = { kind = "soft" }\nmethod = "mtt"',
            "method 'mtt' learns from whole trajectories of experts; add for example trajectories = 3",
        ),
        (
            'at = "{epoch}"\nlabels',
            'at = "step {epoch}"\nlabels',
            "the expert keeps no snapshot at step 2; kept steps: 0, 1, 3, 6, 12, at arms.soft (line 11 of study.toml)",
        ),
    ],
)
def test_names_and_grids_are_checked_before_data_are_opened(old: str, new: str, sentence: str) -> None:
    study = Study.parse(SMALL.replace(old, new, 1))
    with pytest.raises(OptionError) as refused:
        Builder(study, "smoke", DataKey.unseen("normalize"), threads=1).graph()
    assert str(refused.value).startswith(sentence)
    assert "study.toml" in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('over = ["ipc"]', 'over = "ipc"', 'arms.hard.over (line 18 of study.toml): a list is wanted, got one value; write over = ["ipc"]'),
        (
            'over = ["ipc"]',
            'over = ["ipc"]\nexperts = 0',
            "arms.hard.experts (line 19 of study.toml): a list is wanted, got one value; write experts = [0]",
        ),
        (
            "[arms.hard]",
            "[[arms.hard]]",
            "arms.hard[0] (line 17 of study.toml): one table is wanted, got a list of tables; write [arms.hard] with single brackets",
        ),
        (
            "[scales.smoke.experts.main]",
            "[[scales.smoke.experts.main]]",
            "scales.smoke.experts.main[0] (line 39 of study.toml): one table is wanted, got a list of tables; write [scales.smoke.experts.main] with single",
        ),
        ("[[analyses]]", "[analyses]", "analyses (line 34 of study.toml): a list is wanted, got one table; write [[analyses]] with double brackets"),
        (
            'labels = { kind = "hard" }',
            'labels = "hard"',
            "arms.hard.labels (line 20 of study.toml): a table is wanted, got 'hard'; write one, such as { kind = ... }",
        ),
        (
            "recipe = { steps = 20, lr = 0.1 }",
            "recipe = 20",
            "scales.smoke.recipe (line 48 of study.toml): a table is wanted, got 20; write recipe = { ... }",
        ),
    ],
)
def test_lists_and_tables_are_asked_for_as_a_file_has_them(old: str, new: str, sentence: str) -> None:
    with pytest.raises(OptionError) as refused:
        Study.parse(SMALL.replace(old, new, 1))
    assert str(refused.value).startswith(sentence)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8-sig")
    study = Study.load(tmp_path / "small.toml")
    assert (study.file.name, study.content) == ("small", SMALL)


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("epoch = [1, 2]", "epoch = [2, true]", "arms.expert.at (line 9 of study.toml)"),
        ("ipc = [1, 4]", "ipc = [4, false]", "arms.soft.ipc (line 13 of study.toml)"),
        ('kind = "soft" }', 'kind = "soft" }\nexperts = [0, true]', "arms.soft.experts (line 16 of study.toml)"),
        ('kind = "soft" }', 'kind = "soft", temperature = true }', "arms.soft.labels.temperature (line 15 of study.toml)"),
        ("students = 2", "students = true", "scales.smoke.students (line 49 of study.toml)"),
        ("shape = [1, 8, 8]", "shape = [true, 8, 8]", "scales.smoke.data.shape (line 45 of study.toml)"),
    ],
)
def test_true_is_no_number(old: str, new: str, place: str) -> None:
    with pytest.raises(OptionError) as refused:
        Study.parse(SMALL.replace(old, new, 1))
    assert str(refused.value).startswith(f"{place}: a number is wanted, got {'false' if 'false' in new else 'true'}; write one")
    assert Study.parse(SMALL.replace('kind = "soft"', 'kind = "soft", renormalize = false', 1)).cells("smoke")


@pytest.mark.parametrize(
    ("axis", "values", "spoken"),
    [
        ("draw", "[0, 1, 2]", "{draw}"),
        ("expert", "[0, 1]", "{expert}"),
        ("pair", "[{ draw = 0, expert = 0 }, { draw = 1, expert = 1 }]", "{draw} or {expert}"),
    ],
)
def test_an_axis_that_an_arm_lists_and_does_not_use_would_fake_repeats(axis: str, values: str, spoken: str) -> None:
    content = SMALL.replace("ipc = [1, 4] }", f"ipc = [1, 4], {axis} = {values} }}").replace('over = ["ipc"]', f'over = ["ipc", "{axis}"]')
    with pytest.raises(OptionError) as refused:
        Study.parse(content)
    assert str(refused.value) == (
        f"arm 'hard' is crossed over '{axis}' but uses no {spoken}, so its values would repeat the same measurement, at arms.hard.over "
        f"(line 18 of study.toml); use it in the arm, or leave '{axis}' out of `over`"
    )
    inside = 'labels = { kind = "hard" }\ntransforms = ["noise:seed={draw}"]\nexperts = ["{expert}"]'
    axes = "ipc = [1, 4], draw = [0, 1], expert = [0, 1] }"
    Study.parse(
        SMALL.replace("ipc = [1, 4] }", axes)
        .replace('over = ["ipc"]', 'over = ["ipc", "draw", "expert"]')
        .replace('labels = { kind = "hard" }', inside)
    )


def test_no_claim_rests_on_a_quantity_without_an_interval() -> None:
    law = '[[analyses]]\nname = "scaling"\nid = "law"\noptions = { title = "Law", hard = { arm = "hard" }, soft = [{ arm = "soft", epoch = 2 }] }\n\n'
    claim = (
        '[[claims]]\nid = "c"\nsentence = "s"\nexpected = "e"\ncheck = { kind = "measured", analysis = "law", quantity = "saving", above = 2.0 }\n\n'
    )
    content = SMALL.replace("[[claims]]", law + claim + "[[claims]]", 1)
    Study.parse(content)
    with pytest.raises(OptionError) as refused:
        Study.parse(content.replace('"saving"', '"residual"'))
    assert str(refused.value).startswith(
        "'residual' of 'scaling' has no interval, so no claim can be decided from it, at claims[0].check.quantity (line "
    )


@pytest.mark.parametrize(
    ("check", "sentence"),
    [
        (
            'kind = "measured", analysis = "law", quantity = "savings", above = 2',
            "the analysis 'law' has no scalar 'savings', at claims[0].check.quantity (line 31 of study.toml); did you mean 'saving'? known: ",
        ),
        (
            'kind = "significant", analysis = "students", quantity = "saving"',
            "the analysis 'students' has no scalar 'saving', at claims[0].check.quantity (line 31 of study.toml); 'curves' has none: claim something about ",
        ),
        (
            'kind = "factor", left = { analysis = "law", quantity = "saving" }, right = { analysis = "law", quantity = "accuracy" }, within = 2',
            "the analysis 'law' has no scalar 'accuracy', at claims[0].check.right.quantity (line 31 of study.toml); known: exponent, residual, saving",
        ),
    ],
)
def test_a_claim_about_a_scalar_that_is_never_measured_is_refused(check: str, sentence: str) -> None:
    law = '[[analyses]]\nname = "scaling"\nid = "law"\noptions = { title = "Law", hard = { arm = "hard" }, soft = [{ arm = "soft", epoch = 2 }] }\n\n'
    content = SMALL.replace("[[claims]]", f'{law}[[claims]]\nid = "c"\nsentence = "s"\nexpected = "e"\ncheck = {{ {check} }}\n\n[[claims]]', 1)
    with pytest.raises(OptionError) as refused:
        Study.parse(content)
    assert str(refused.value).startswith(sentence)


def test_the_known_scalars_are_those_of_the_analyses() -> None:
    named = 0
    for name in STUDY_ANALYSES:
        source, options = inspect.getsource(STUDY_ANALYSES[name]), inspect.signature(STUDY_ANALYSES[name]).parameters["options"].annotation
        if options.scalars is not None:
            named += 1
            assert [scalar for scalar in options.scalars if f'"{scalar}"' not in source] == []
            assert bool(options.scalars) == any(made in source for made in ("_scalar(", "_bounded(", "_exact("))
            assert set(options.bare) <= set(options.scalars)
    assert named == 9


def test_an_ensemble_has_every_expert_once() -> None:
    with pytest.raises(OptionError) as refused:
        Study.parse(SMALL.replace('labels = { kind = "soft" }', 'labels = { kind = "soft" }\nexperts = [0, 1, 0]'))
    assert "an ensemble has every expert once, got 0 twice; name each number once" in str(refused.value)
    assert "arms.soft.experts (line 16 of study.toml)" in str(refused.value)


def test_linked_axes_set_several_names_at_once() -> None:
    content = SMALL.replace(
        "axes = { epoch = [1, 2], ipc = [1, 4] }", "axes = { epoch = [1, 2], ipc = [1, 4], best = [{ n = 1, e = 2 }, { n = 4, e = 1 }] }"
    )
    study = Study.parse(content + '[arms.linked]\nover = ["best"]\nipc = "{n}"\nat = "{e}"\ntransforms = ["top-k:k={n}"]\n')
    cells = [cell for cell in study.cells("smoke") if cell.arm == "linked"]
    assert [(cell.coordinates, cell.making.ipc, cell.making.at, cell.making.transforms) for cell in cells] == [
        ({"n": 1, "e": 2}, 1, 2, ("top-k:k=1",)),
        ({"n": 4, "e": 1}, 4, 1, ("top-k:k=4",)),
    ]
    assert study.axes("smoke")["n"] == [1, 4]


def test_a_scale_runs_the_arms_that_it_names_with_its_values() -> None:
    study = Study.parse(
        SMALL.replace('at = "{epoch}"\nlabels', 'at = "{epoch}"\nmodel = "{net}"\nlabels')
        + 'values = { net = "softmax" }\narms = ["soft", "expert", "hard"]\n'
    )
    assert {cell.making.model for cell in study.cells("smoke") if cell.arm == "soft"} == {"softmax"}
    with pytest.raises(OptionError, match="unknown arm 'hard' at claims\\[0\\].check.left"):
        Study.parse(SMALL + 'arms = ["soft", "expert"]\n')


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the study .*none.toml': No such file or directory; name a .toml file of studies/"):
        Study.load(tmp_path / "none.toml")


def test_moments_of_a_training() -> None:
    assert [moment(at, 3) for at in (0, 3, 0.25, "best", "last", "step 211")] == [
        ("epoch", 0),
        ("epoch", 3),
        ("epoch", 0.25),
        ("best", 0),
        ("last", 0),
        ("step", 211),
    ]
    with pytest.raises(OptionError, match="a snapshot is an epoch, 'best', 'last' or 'step N', got 'beast'"):
        moment("beast", 3)


def test_every_study_of_the_repository_is_sound() -> None:
    files = sorted(Path("studies").rglob("*.toml"))
    assert files
    for file in files:
        assert file.relative_to("studies").with_suffix("").as_posix() == Study.load(file).file.name


def test_the_page_names_every_task_check_and_key() -> None:
    page = Path("docs/studies.md").read_text()
    names = [*KINDS, *CHECKS, *Making.model_fields, *Scale.model_fields]
    assert [name for name in names if f"`{name}`" not in page and f"scales.X.{name}." not in page] == []
