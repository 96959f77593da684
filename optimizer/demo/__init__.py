"""The demo: a trained family of small checkpoints, fitted end to end and compared with the truth.

The family itself lies in studies/demo, and in the wheel beside this file.
"""

from optimizer.demo.running import copy_family, family_folder, run_demo

__all__ = ["copy_family", "family_folder", "run_demo"]
