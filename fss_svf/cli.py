"""`fss-svf VERB key=value ...`: finds the verb and starts it."""

from __future__ import annotations

import sys

from fss_svf import __version__, launch
from fss_svf.errors import did_you_mean
from fss_svf.launch import VERBS


def main() -> None:
    """Run the verb of sys.argv; exit status 0, 1 after an error, 2 for a wrong verb."""
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(_usage())
    elif verb == "--version":
        print(__version__)
    elif verb in VERBS:
        sys.exit(launch.launch(verb, arguments))
    else:
        message = f"fss-svf: no verb {verb!r}{did_you_mean(verb, VERBS)}; known: {', '.join(VERBS)}"
        sys.exit(launch.refuse(message, 2))


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name.ljust(width)}  {verb.what}" for name, verb in VERBS.items())
    return (
        f"fss-svf {__version__}: few-shot segmentation around Singular Value Fine-tuning\n\n"
        f"usage: fss-svf VERB key=value ...\n\n{verbs}\n\n"
        "  fss-svf VERB --cfg job   every key of a verb and its value\n"
        "  fss-svf VERB --help      its config groups\n"
        "  fss-svf VERB -m k=1,2    a sweep\n"
    )
