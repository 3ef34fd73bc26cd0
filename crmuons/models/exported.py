"""The file bundles.py that exported directories and models in MLflow hold: it generates without crmuons.

A user gets one file, which runs as a script, can be copied anywhere, and never disagrees with another version of crmuons.
The code is kept in seven modules, which this module joins. Therefore these modules import only each other from crmuons.
"""

import inspect
import re

from crmuons.models import blocks, bundles, drawing, ensemble, extra, formulas, standalone

IMPORT = re.compile(r"^from crmuons\.models\.\w+ import (?:\([^)]*\)|.*)\n", re.MULTILINE)


def bundles_source() -> str:
    """Return the text of bundles.py. It begins with the docstring of crmuons.models.bundles."""
    parts = [
        IMPORT.sub("", inspect.getsource(module))
        for module in (blocks, formulas, extra, drawing, standalone, ensemble, bundles)
    ]
    return f'"""{bundles.__doc__}"""\n\n' + "\n\n".join(parts)
