"""blockfit: fit the recipe of a closed merge from its sources, block by block.

Imports point one way: checkpoints <- recipes <- similarity <- search <- reports, exports <- cli.
"""

__version__ = "0.1.0"
