"""The command line: a table of verbs, loaded when used so that help is instant, and one place where problems become one sentence."""

import os
import signal
import sys
from types import FrameType

from cyclopts import App, CycloptsError

from limbeck import __version__
from limbeck.errors import LimbeckError

VERBS = {
    "demo": ("limbeck.cli.verbs:demo", "Distill handwritten digits end to end in under a minute."),
    "distill": ("limbeck.cli.verbs:distill", "Distill a source into one file, evaluate it beside its baselines, write a report."),
    "evaluate": ("limbeck.cli.verbs:evaluate", "Train students on a distilled file and measure them, beside random real images."),
    "score": ("limbeck.cli.verbs:score", "Label-robust and augmentation-robust scores of a distilled file, with every component."),
    "labels": ("limbeck.cli.labels:app", "Choose how labels are made: `labels tune` spends a byte budget on images and labels, by validation."),
    "analyze": ("limbeck.cli.analyze:analyze", "Ask what a distilled set has learned: recognition, mixing with real images, agreement, and more."),
    "import": ("limbeck.cli.verbs:import_", "Turn a distilled set of another program (DC, MTT, SRe2L, tensors) into a limbeck file."),
    "compare": ("limbeck.cli.verbs:compare", "Paired differences in accuracy between results, with 95 % intervals."),
    "train": ("limbeck.cli.verbs:train", "Train a model, your own too, on a distilled file and save a checkpoint."),
    "audit": ("limbeck.cli.audit:audit", "Measure what a set or its labels give away of training records that are not in it."),
    "leak": ("limbeck.cli.leak:leak", "Measure what soft labels give away of what their teacher memorized: the leak experiments."),
    "study": ("limbeck.cli.study:app", "Run, resume and report experiments that are written as study files."),
    "report": ("limbeck.cli.verbs:report", "Write the HTML report and its figures again from a run folder."),
    "ls": ("limbeck.cli.verbs:list_", "List sources, methods, selectors, models, protocols, pixel spaces and runs."),
    "explain": ("limbeck.cli.verbs:explain", "Explain any name that ls lists, or what is inside a distilled file."),
}

app = App(
    name="limbeck",
    version=__version__,
    help="Distill a labeled image dataset into a few images per class with soft labels, and judge the result honestly.",
    help_epilogue="Start with: limbeck demo",
    suppress_keyboard_interrupt=False,  # main says what became of the work
)
for _name, (_path, _help) in VERBS.items():
    app.command(_path, name=_name, help=_help)


def main() -> None:
    """Entry point: runs a verb and turns every expected problem into one sentence and exit code 2."""
    signal.signal(signal.SIGTERM, _stop)
    # waiting threads spin briefly and then sleep (read when torch loads): the default spins long enough to make a step ten times slower on a busy
    # machine, sleeping at once makes it half again slower on an idle one
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False)
    except LimbeckError as problem:
        _fail(str(problem), problem.exit_code)
    except CycloptsError as problem:
        _fail(_sentence(problem))
    except KeyboardInterrupt:
        _fail("stopped; finished work is kept, and the same command continues from there", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _sentence(problem: CycloptsError) -> str:
    cause = problem.__cause__ or problem.__context__
    if cause is not None and hasattr(cause, "errors"):  # pydantic refused an option's value
        fault = cause.errors()[0]
        inner = fault.get("ctx", {}).get("error")
        if isinstance(inner, LimbeckError):
            return str(inner)
        return (
            f"--{'-'.join(str(part) for part in fault['loc']).replace('_', '-')} {fault['msg'][0].lower()}{fault['msg'][1:]}, got {fault['input']!r}"
        )
    return " ".join(str(problem).split())


def _fail(sentence: str, code: int = 2) -> None:
    print(f"limbeck: {sentence}", file=sys.stderr)
    sys.exit(code)
