"""Limits on threads hold for all libraries of linear algebra, also for those that are loaded later."""

import os
import subprocess
import sys

import pytest

CODE = """
from optimizer.threads import one_thread
from threadpoolctl import threadpool_info

def threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

with one_thread():
    import scipy.optimize
    inside = threads()
print(*inside, "then", *threads())
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has one thread in any case")
def test_one_thread_limits_the_libraries_of_numpy_and_scipy():
    """Inside, each library has one thread although scipy is imported there first; outside, as many as before."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    shown = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    inside, _, outside = shown.stdout.partition(" then ")

    assert set(inside.split()) == {"1"}
    assert set(outside.split()) == {"2"}
