"""All of the database. A package, so that no installed one of this name (as ipython-sql has) hides the folder.

Every script imports it, so it is here that an old Python is told of.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - that is the point
    sys.stderr.write(f"Python 3.11 or newer is needed, and this is {sys.version.split()[0]}: run it with a newer one\n")
    raise SystemExit(2)
