"""Folders of scikit-learn's digits as PNG files."""

from entropyfloor.vision import sources


def save_digits(home, names, train=20, test=10):
    """The first digits of each kind in a directory with the name of the kind, below `train` and below `test`."""
    for split, count in (("train", train), ("test", test)):
        source = sources.load("digits", home, split)
        for label, name in names.items():
            (home / split / name).mkdir(parents=True)
            for i in [i for i, found in enumerate(source.labels) if found == label][:count]:
                source.store.open(i).save(home / split / name / f"{i}.png")
    return home
