"""The demo: a trained family of small checkpoints, fitted end to end and compared with the truth.

May import everything below the command line; the family itself lies in studies/demo, and in the wheel beside this file.
"""

from optimizer.demo.running import Demo, copy_family, family_folder, run_demo

__all__ = ["Demo", "copy_family", "family_folder", "run_demo"]
