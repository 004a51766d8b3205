from limbeck.progress import SILENT


def test_the_silent_reporter_takes_everything_and_says_nothing(capfd) -> None:  # type: ignore[no-untyped-def]
    SILENT.note("a warning")
    with SILENT.task("work", 3) as tick:
        tick(1)
        tick(2)
    assert capfd.readouterr() == ("", "")
