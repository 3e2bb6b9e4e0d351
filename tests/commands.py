"""The words of every command."""

from entropyfloor.commands import COMMANDS, Group

NAMES = [
    words
    for name, command in COMMANDS.items()
    for words in ([[name, inner] for inner in command.commands] if isinstance(command, Group) else [[name]])
]


def options_of(settings):
    """Settings as options of a command."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
