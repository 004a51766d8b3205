from limbeck.errors import DataError, FileFormatError, LimbeckError, OptionError, nearest


def test_nearest_names_the_closest_and_lists_all_sorted() -> None:
    assert nearest("digit", ["mnist", "digits", "cifar10"]) == "did you mean 'digits'? known: cifar10, digits, mnist"
    assert nearest("zzz", iter(["b", "a"])) == "known: a, b"


def test_every_error_is_the_users_to_mend() -> None:
    assert all(issubclass(kind, LimbeckError) and kind.exit_code == 2 for kind in (OptionError, DataError, FileFormatError))
