"""The site builds without a warning and loads nothing from other servers."""

import os
import re
import subprocess
import sys

import pytest
from documented_pages import ROOT


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_builds(tmp_path):
    """`make docs` builds every page of mkdocs.yml, with the parts from the code, the notebooks and the results."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'blockfit[docs]'")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    pages = {
        path.relative_to(tmp_path).as_posix(): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")
    }
    assert set(re.findall(r"([\w/-]+)\.md$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)) <= {
        name.removesuffix(".html") for name in pages
    }
    assert "--log-file FILE" in pages["reference/commands.html"]
    assert 'id="optimizer.studies.new.new_study"' in pages["reference/python.html"]
    assert "<code>add_difference</code>" in pages["reference/merging.html"]
    assert pages["tutorial/01-fit-a-clone.html"].count("<img") >= 3
    for name, text in pages.items():
        loaded = re.findall(r'<(?:script|img|link)[^>]*?(?:src|href)="((?:https?:)?//[^"]+)"', text)
        assert loaded == [], f"{name} loads {loaded}"
        assert "{{" not in re.sub(r"<(code|script).*?</\1>", "", text, flags=re.DOTALL), name
