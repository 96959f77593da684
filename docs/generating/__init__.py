"""What the documentation takes from elsewhere: figures of the benchmarks, commands, schemas, Python's names, notebooks.

docs/hooks.py puts it into the pages when the site is built; readme.py puts the table of results into README.md.
"""
