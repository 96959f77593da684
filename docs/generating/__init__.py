"""Generated parts of the documentation: figures of the benchmarks, commands, schemas, Python names, notebooks.

docs/hooks.py inserts them into the pages when the site is built; readme.py inserts the table of results into README.md.
"""
