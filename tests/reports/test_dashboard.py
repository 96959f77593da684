"""Optuna's dashboard for a finished fit: the real command, its pages over HTTP and in a real browser."""

import hashlib
import http.client
import json
import re
import shutil
import signal
import socket
import sqlite3
import struct
import sys
import urllib.error
import urllib.request
from contextlib import closing, contextmanager

import optuna
import pytest
from databases import sqlite_url
from optuna.exceptions import StorageInternalError
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial
from optuna_dashboard import wsgi
from processes import start_command
from ruamel.yaml import YAML
from waiting import PATIENCE

from optimizer.errors import StudyError
from optimizer.reports.dashboard import _OwnPagesOnly, _PlotStore, _ShownStorage
from optimizer.reports.plots import write_plots
from optimizer.search import open_trials
from optimizer.studies import load_study


@pytest.fixture(scope="module")
def study(finished_fit, tmp_path_factory):
    """A copy of a finished fit's folder with its plots."""
    folder = tmp_path_factory.mktemp("dashboard") / "study"
    shutil.copytree(finished_fit.study.folder, folder, ignore=shutil.ignore_patterns("artifacts", "plots"))
    write_plots(finished_fit, folder / "plots")
    (folder / "report.html").write_text("<!doctype html><title>report</title>", encoding="utf-8")
    return folder


@contextmanager
def running(*arguments):
    """Run the command during the with block; yield its first line of output and the process."""
    process = start_command("dashboard", *arguments)
    try:
        process.wait_for("\n")
        yield process.out.splitlines(keepends=True)[0], process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def address(study):
    """The address of the dashboard for that study, served by the command."""
    with running(study, "--port", "0") as (line, _):
        assert line.startswith("http://127.0.0.1:"), line
        yield line.split()[0].removesuffix("/dashboard")


def get(url, **headers):
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  the test's own server
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
        return answer.read()


def details(address):
    """Return the dashboard's data on each Optuna study, by name."""
    summaries = json.loads(get(f"{address}/api/studies"))["study_summaries"]
    return {
        summary["study_name"]: json.loads(get(f"{address}/api/studies/{summary['study_id']}")) for summary in summaries
    }


def test_every_search_is_shown_with_its_trials(address, study):
    """The dashboard shows every search by its name, with all its trials; user attributes describe the search."""
    found = details(address)

    url = sqlite_url(study / "study.db")
    stored = {name: optuna.load_study(study_name=name, storage=url) for name in found}
    assert len(found) == 3
    assert {name: len(search["trials"]) for name, search in found.items()} == {
        name: len(search.trials) for name, search in stored.items()
    }
    attributes = {attribute["key"]: attribute["value"] for attribute in found["together"]["user_attrs"]}
    assert attributes["metric"] == "delta on OUT03-OUT05"
    assert attributes["strategy"] == "joint"
    assert attributes["target"] == "target"
    assert attributes["budget"] == "4"
    assert found["together"]["objective_names"] == ["similarity"]


def test_lowest_similarity_can_be_plotted(address, study):
    """Each trial has the similarity of its worst block as a number, and no table of all blocks."""
    stored = optuna.load_study(study_name="together", storage=sqlite_url(study / "study.db")).trials
    for trial, whole in zip(details(address)["together"]["trials"], stored, strict=True):
        attributes = {attribute["key"]: attribute["value"] for attribute in trial["user_attrs"]}
        assert float(attributes["lowest"]) == min(whole.user_attrs["block_scores"].values())
        assert not any(value.startswith(("{", "[")) for value in attributes.values())


def test_the_note_has_the_verdict_and_the_report(address, study):
    """Each search's note has the verdict of best.yaml, and a link to the report, which the dashboard serves."""
    verdict = YAML(typ="safe").load(study / "best.yaml")["fitted"]["verdict"]
    for search in details(address).values():
        text = search["note"]["body"].replace("\\", "")
        assert text == f"{verdict}\n\n[The report](/report)"
    assert get(f"{address}/report") == (study / "report.html").read_bytes()


def test_plots_are_artifacts(address, study):
    """Each search has its own plots and those of the whole study, byte for byte, and none of other searches."""
    found = details(address)
    shared = {"alphas.png", "best-so-far.png", "similarity-per-block.png"}
    names = {name: {artifact["filename"] for artifact in detail["artifacts"]} for name, detail in found.items()}

    assert names["together"] == shared | {"similarity-against-alpha-together.png"}
    assert all(files > shared and len(files) == 4 for files in names.values())
    assert len(set().union(*names.values())) == len(list((study / "plots").iterdir()))
    number = json.loads(get(f"{address}/api/studies"))["study_summaries"]
    for study_summary in number:
        for artifact in found[study_summary["study_name"]]["artifacts"]:
            body = get(f"{address}/artifacts/{study_summary['study_id']}/{artifact['artifact_id']}")
            assert body == (study / "plots" / artifact["filename"]).read_bytes()


def contents(folder):
    """Return the hash of every file below a folder, except the files that register workers."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".workers" not in str(path)
    }


def ask(address, method, path, body=None, **headers):
    """Send a request with any method, unchanged, and return status and body."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=PATIENCE)
    with closing(connection):
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, body=data, headers={"Content-Type": "application/json"} | headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())


# Bodies with which the dashboard's own pages send its requests.
BODIES = {
    "/api/studies": {"study_name": "new", "directions": ["maximize"]},
    "rename": {"study_name": "renamed"},
    "note": {"body": "a note", "version": 1},
    "tell": {"state": "Complete", "values": [1.0]},
    "user-attrs": {"user_attrs": {"a": 1}},
    "artifacts": {"file": "data:text/plain;base64,aGk=", "filename": "a.txt"},
    "preference": {"mode": "ChooseWorst", "candidates": [0, 1], "clicked": 0},
    "preference_feedback_component": {"output_type": "note"},
}


def requests_that_write(study_id, trial_id, artifact_id):
    """Return (method, path, body) for every route except GET of the installed dashboard."""
    values = {"study_id": study_id, "trial_id": trial_id, "artifact_id": artifact_id, "history_id": "1"}
    for route in wsgi(InMemoryStorage(), artifact_store=object()).routes:
        if route.method != "GET":
            path = re.sub(r"<(\w+)(:[^>]*)?>", lambda found: str(values[found[1]]), route.rule)
            named = [key for key in BODIES if key in route.rule]
            yield route.method, path, BODIES[max(named, key=len)] if named else {}


def test_nothing_can_be_changed(address, study):
    """Every request of the dashboard that would delete, rename, add, annotate or upload is refused."""
    before = contents(study)
    artifacts = details(address)["together"]["artifacts"]
    asked = list(requests_that_write(3, 14, artifacts[0]["artifact_id"]))

    for method, path, body in asked:
        status, answer, headers = ask(address, method, path, body)
        assert (method, path, status) == (method, path, 405)
        assert headers["Allow"] == "GET, HEAD"
        assert b"changes, adds and deletes nothing" in answer
    assert {method for method, _, _ in asked} == {"POST", "PUT", "DELETE"}
    assert len(asked) >= 19
    assert contents(study) == before
    assert len(details(address)["together"]["trials"]) == 4


@pytest.mark.parametrize(
    "method", ["delete", "DeLeTe", "Post", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROXY", "GET2", "get"]
)
def test_other_methods_are_refused(address, study, method):
    """A method in unusual case and an unknown method are refused, too."""
    before = contents(study)

    assert ask(address, method, "/api/studies/1", {})[0] in (400, 405)

    assert contents(study) == before


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("?_method=DELETE", {}),
        ("?method=delete", {}),
        ("", {"X-HTTP-Method-Override": "DELETE"}),
        ("", {"X-HTTP-Method": "DELETE"}),
        ("", {"X-Method-Override": "DELETE"}),
    ],
)
def test_method_overrides_are_ignored(address, study, query, headers):
    """A request that asks to be treated as another method is handled by its real method."""
    before = contents(study)

    assert ask(address, "GET", f"/api/studies/1{query}", **headers)[0] == 200
    assert ask(address, "POST", f"/api/studies/1{query}", {}, **headers)[0] == 405

    assert contents(study) == before


def test_head_is_get_without_a_body(address):
    """HEAD has the answer of GET without a body."""
    status, body, _ = ask(address, "HEAD", "/api/studies")

    assert (status, body) == (200, b"")


def test_the_storage_refuses_too(study):
    """The storage behind the server also refuses changes by any of its methods."""
    with open_trials(load_study(study, with_files=False)) as trials:
        shown = _ShownStorage(trials, _PlotStore(study))
        trial = create_trial(value=1.0)
        changes = [
            lambda storage: storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "new"),
            lambda storage: storage.delete_study(1),
            lambda storage: storage.set_study_user_attr(1, "a", 1),
            lambda storage: storage.set_study_system_attr(1, "a", 1),
            lambda storage: storage.create_new_trial(1, trial),
            lambda storage: storage.set_trial_param(1, "x", 0.5, optuna.distributions.FloatDistribution(0, 1)),
            lambda storage: storage.set_trial_state_values(1, TrialState.COMPLETE, [1.0]),
            lambda storage: storage.set_trial_intermediate_value(1, 0, 1.0),
            lambda storage: storage.set_trial_user_attr(1, "a", 1),
            lambda storage: storage.set_trial_system_attr(1, "a", 1),
        ]
        for change in changes:
            for storage in (shown, trials.storage):
                with pytest.raises(StudyError, match="opened for reading only; it cannot be changed"):
                    change(storage)
        # SQLite itself refuses as well.
        for change in changes[:4]:
            with pytest.raises(StorageInternalError) as caught:
                change(trials.storage._inner)
            assert "attempt to write a readonly database" in str(caught.value.__cause__)
        assert len(shown.get_all_trials(3)) == 4
        with pytest.raises(PermissionError):
            _PlotStore(study).write("a", None)
        with pytest.raises(PermissionError):
            _PlotStore(study).remove("a")


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}, {"Host": "127.0.0.1"}],
    ids=lambda headers: "-".join(*headers.items()),
)
def test_pages_of_other_sites_are_refused(address, headers):
    """Every request that a page of another site could send through this browser is refused."""
    with pytest.raises(urllib.error.HTTPError, match="403"):
        get(f"{address}/api/studies", **headers)


def test_own_pages_are_served(address):
    """The dashboard answers under both names of this machine, with and without an Origin header."""
    port = address.rsplit(":", 1)[1]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        assert json.loads(get(f"http://{host}/api/studies", Origin=f"http://{host}"))["study_summaries"]


def test_a_host_without_port_is_accepted_at_port_80():
    """A host without port is accepted at port 80 only, and only for this machine's names."""
    answered = []

    def status(port, host, origin=None):
        environ = {"SERVER_PORT": port, "HTTP_HOST": host} | ({} if origin is None else {"HTTP_ORIGIN": origin})
        guarded = _OwnPagesOnly(lambda environ, start: start("200 OK", []) or [])
        guarded(environ, lambda status, headers: answered.append(status))
        return answered[-1]

    for host in ("127.0.0.1", "localhost", "localhost:80"):
        assert status("80", host) == "200 OK"
        assert status("80", host, f"http://{host}") == "200 OK"
    assert status("80", "evil.example") == "403 Forbidden"
    assert status("80", "localhost", "http://evil.example") == "403 Forbidden"
    assert status("8080", "localhost") == "403 Forbidden"


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process there")
def test_json_has_the_address(study):
    """--json prints one object with the address when the server listens; Ctrl-C ends the server silently."""
    with running(study, "--port", "0", "--json") as (_, process):
        process.wait_for("}\n")
        text = process.out
        (address,) = json.loads(text).values()
        assert list(json.loads(text)) == ["address"]
        assert b"<html" in get(address)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()

    assert (process.returncode, out, err) == (0, text, "")


def test_broken_requests_print_nothing(study, tmp_path):
    """Broken connections and errors inside the dashboard print nothing, and the server continues."""
    copy = shutil.copytree(study, tmp_path / "study")
    with running(copy, "--port", "0") as (line, process):
        address = line.split()[0].removesuffix("/dashboard")
        port = int(address.rsplit(":", 1)[1])
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port)) as broken:
                broken.sendall(b"GET /dash")
                # Closing now resets the connection instead of ending it.
                broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert details(address)
        with closing(sqlite3.connect(copy / "study.db")) as database:
            database.execute("DROP TABLE studies")
        for path in ("api/studies", "artifacts/1/0"):
            with pytest.raises(urllib.error.HTTPError, match="50"):
                get(f"{address}/{path}")
        assert b"<html" in get(f"{address}/dashboard")
        process.kill()
        assert process.communicate()[1] == ""


def test_a_second_server_is_refused(address, study, blockfit):
    """A second server on the same port is refused in one line; on another port it shows the same plots once."""
    port = address.rsplit(":", 1)[1]
    second = blockfit("dashboard", study, "--port", port)

    assert (second.returncode, second.stdout) == (2, "")
    assert second.stderr.startswith(f"blockfit: --port: {port} cannot be listened on")
    assert len(second.stderr.splitlines()) == 1
    with running(study, "--port", "0") as (line, _):
        elsewhere = line.split()[0].removesuffix("/dashboard")
        assert elsewhere != address
        for server in (address, elsewhere):
            assert [len(found["artifacts"]) for found in details(server).values()] == [4, 4, 4]


def test_an_unfitted_study_is_refused(study, tmp_path, blockfit):
    """A study that was never fitted is refused, and no database is created."""
    for name in ("study.yaml", "recipe.yaml"):
        shutil.copy(study / name, tmp_path)
    done = blockfit("dashboard", tmp_path, "--port", "0")

    assert (done.returncode, done.stdout) == (2, "")
    assert "contains no trials of" in done.stderr
    assert "blockfit fit" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml", "study.yaml"]


def test_a_browser_shows_the_searches(address, browser):
    """A browser shows the searches, and the trials and plots of one search, without errors or requests to other hosts.

    No button changes anything.
    """
    page = browser.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    problems, hosts = [], set()

    def buttons():
        found = (
            page.locator("button")
            .filter(visible=True)
            .evaluate_all(
                "all => all.map(button => [button.getAttribute('aria-label'), button.innerText, "
                "...Array.from(button.querySelectorAll('[data-testid]'), icon => icon.dataset.testid)].join(' '))"
            )
        )
        return [text for text in found if re.search(r"(?i)delete|rename|create|add|edit|save|upload|skip", text)]

    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    try:
        page.goto(f"{address}/dashboard")
        page.get_by_text("together").first.wait_for()
        assert page.get_by_text("Reload").is_visible()
        assert buttons() == []
        page.get_by_text("together").first.click()
        page.get_by_text("Study User Attributes").wait_for()
        assert buttons() == []
        page.get_by_text("similarity-against-alpha-together.png").wait_for()
        picture = page.locator("img").first
        picture.scroll_into_view_if_needed()
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
        assert page.get_by_text("Upload a New File").is_hidden()
        study = page.url.split("?")[0]
        for part in ("analytics", "graph", "note", "selection"):
            page.goto(f"{study}/{part}")
            page.wait_for_load_state("networkidle")
            assert buttons() == []
        page.goto(study)
        page.goto(page.url.split("?")[0] + "/trials")
        page.get_by_text("4 Trials").wait_for()
        page.get_by_text("lowest").first.wait_for()
        assert buttons() == []
    finally:
        page.close()

    assert problems == []
    assert hosts == {address.removeprefix("http://")}
