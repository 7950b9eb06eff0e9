"""All of the database. A package, so that no installed one of this name (as ipython-sql has) hides the folder."""
