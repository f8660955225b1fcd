"""`fss-svf VERB key=value ...`: finds the verb and starts it."""

from __future__ import annotations

import sys

from fss_svf import __version__, console, launch, usage
from fss_svf.errors import did_you_mean
from fss_svf.launch import VERBS

_EXAMPLES = (
    "fss-svf prepare dataset=toy",
    "fss-svf train experiment=toy tuning=svf",
    "fss-svf evaluate checkpoint=latest shot=[1,5]",
)


def main() -> None:
    """Run the verb of sys.argv; exit status 0, 1 after an error, 2 for a wrong verb."""
    try:
        status = _run(*(sys.argv[1:] or ["--help"]))
        sys.stdout.flush()
    except BrokenPipeError:  # such as head: it has read enough
        status = console.end_output()
    sys.exit(status)


def _run(verb: str, *arguments: str) -> int:
    if verb in ("-h", "--help", "help"):
        print(_usage())
    elif verb == "--version":
        print(__version__)
    elif "-sc" in (verb, *arguments):
        return _complete(*(argument for argument in arguments if argument != "-sc"))
    elif verb in VERBS and {"-h", "--help"} & set(arguments):
        print(usage.verb_help(verb, VERBS[verb].what))
    elif verb in VERBS:
        return launch.launch(verb, arguments)
    else:
        message = f"fss-svf: no verb {verb!r}{did_you_mean(verb, VERBS)}; known: {', '.join(VERBS)}"
        return launch.refuse(message, 2)
    return 0


def _complete(*arguments: str) -> int:
    """What a shell asks for: the script to install, or what the word at the cursor may become."""
    verb = usage.completed_verb(list(VERBS))
    if verb is None and arguments[:1] and arguments[0].startswith("query="):
        print("\n".join(usage.verbs_to_complete(list(VERBS))))
        return 0
    if verb and (experiments := usage.experiments_to_complete(verb)) is not None:
        print("\n".join(experiments))
        return 0
    return launch.complete(verb or "train", arguments)


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name.ljust(width)}  {verb.what}" for name, verb in VERBS.items())
    examples = "\n".join(f"  {example}" for example in _EXAMPLES)
    return (
        f"fss-svf {__version__}: few-shot segmentation around Singular Value Fine-tuning\n\n"
        f"usage: fss-svf VERB key=value ...\n\n{verbs}\n\nexamples\n{examples}\n\n"
        "  fss-svf VERB --help             its keys, groups and examples\n"
        "  fss-svf VERB --cfg job          every key and its value\n"
        "  fss-svf VERB -m k=1,2           a sweep\n"
        '  eval "$(fss-svf -sc install=bash)"  completion by Tab (also zsh, fish)'
    )
