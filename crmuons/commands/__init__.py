"""The subcommands of `crmuons`, a module each: `add` gives a parser its arguments, `run` calls the library and says where results are.

What takes long to import is imported by `add` and `run`, of which the others' are never called: `crmuons train` does not wait
for what `crmuons simulate` needs.
"""

INTERRUPTED = 130  # What a shell makes of a command that Ctrl-C ended: what should follow it does not.
