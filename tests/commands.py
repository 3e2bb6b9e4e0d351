"""The words of every command."""

from entropyfloor.commands import COMMANDS, Group

NAMES = [
    words
    for name, command in COMMANDS.items()
    for words in ([[name, inner] for inner in command.commands] if isinstance(command, Group) else [[name]])
]
