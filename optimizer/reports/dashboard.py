"""A read-only server of Optuna's dashboard for a study's trials and plots, for this machine only."""

import copy
import json
import logging
import re
import socket
from collections.abc import Callable, Container, Iterable, Mapping
from io import StringIO
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, BinaryIO, TextIO
from uuid import NAMESPACE_URL, uuid5
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import wsgi

from optimizer.errors import InputError
from optimizer.events import LOGGED
from optimizer.printable import printable
from optimizer.reports.file_names import file_name_part
from optimizer.search import (
    CheckedStorage,
    CheckedTrials,
    FrozenStudy,
    OpenTrials,
    describe_left_out,
    id_of_study,
    open_trials,
)
from optimizer.studies import Study, StudyFolder, best_recipe

__all__ = ["serve_dashboard"]

HOST = "127.0.0.1"
# Prefix of the study attribute in which Optuna describes a file of a study; the file's id follows.
_ARTIFACT = "artifacts:"
# Study attribute with the names of the objective values.
_NAMES = "study:metric_names"
# Study attributes with notes, which Optuna stores in numbered parts.
_NOTE = re.compile(r"(?P<prefix>dashboard:(?:\d+:)?note_str:)(?P<number>\d{1,6})")
_NOTE_VERSION = re.compile(r"dashboard:(?:\d+:)?note_ver")
_STUDY_NOTE, _STUDY_NOTE_VERSION = "dashboard:note_str:0", "dashboard:note_ver"
# Address of the study's report.
_REPORT = "/report"
_OWN_PLOTS = "similarity-against-alpha-"
_FORBIDDEN = "blockfit's dashboard answers only this machine and its own pages."
_READ_ONLY = "blockfit's dashboard is read-only: it changes, adds and deletes nothing."
_READING = ("GET", "HEAD")
_MOST_UNREAD = 1 << 20  # bytes read of a refused request; a browser waits until its request is read
# Controls of the dashboard's page that would change data, by their accessibility labels and icons.
_HIDDEN = (
    *(f'[aria-label="{name}"]' for name in ("delete study", "rename study", "delete artifact", "skip trial")),
    *(f'button:has([data-testid="{icon}Icon"])' for icon in ("AddBox", "Edit", "Save")),
    '.MuiCard-root:has([data-testid="UploadFileIcon"]):not(:has(.MuiCard-root))',
)
_STYLE = f"<style>{', '.join(_HIDDEN)} {{ display: none !important }}</style>".encode()


def serve_dashboard(
    study: Study,
    storage: str | None = None,
    *,
    port: int = 8080,
    ready: Callable[[str], None] = lambda address: None,
    warn: Callable[[str], None] = LOGGED.warn,
) -> None:
    """Serve Optuna's dashboard for a study's trials until KeyboardInterrupt.

    The server listens on the loopback interface only, refuses requests from other sites' pages in the same browser, and
    refuses every request that would change, add or delete data. It shows a fit's plots with their searches, and its
    verdict and report in each search's note. A fit may run at the same time. StudyError is raised if the study has no
    readable trials.

    Args:
        study: The study.
        storage: Address of the trials; None for the study's folder.
        port: Port to listen on; 0 for any free port.
        ready: Called with the dashboard's address when the server listens.
        warn: Called with a text for trials that are ignored and not shown.

    Raises:
        InputError: If the port cannot be listened on.
    """
    # The dashboard reports its own errors to the browser. Without a handler Python would print them with tracebacks.
    logging.getLogger("optuna_dashboard").addHandler(logging.NullHandler())
    with open_trials(study, storage) as trials:
        plots = _PlotStore(study.folder)
        page = study.outputs.report
        shown = _ShownStorage(trials, plots, _note(study, page))
        for line in shown.left_out():
            warn(line)
        application = _OwnPagesOnly(_WithReport(_ReadingOnly(wsgi(shown, artifact_store=plots)), page))
        try:
            server = make_server(HOST, port, application, server_class=_Server, handler_class=_Quiet)
        except OSError as error:
            raise InputError(
                f"{port} cannot be listened on: {error.strerror}; name another port, or 0 for any free one",
                field="port",
            ) from error
        with server:
            ready(f"http://{HOST}:{server.server_port}/dashboard")
            server.serve_forever()


class _PlotStore(FileSystemArtifactStore):
    """A read-only artifact store: the plots in a study's folder, and files that users added in a folder beside them.

    A plot's id is derived from its file name, so the dashboard always shows the latest version.
    """

    def __init__(self, folder: Path) -> None:
        outputs = StudyFolder(folder)
        super().__init__(outputs.artifacts)
        self.plots = {str(uuid5(NAMESPACE_URL, path.name)): path for path in sorted(outputs.plots.glob("*.png"))}

    def open_reader(self, artifact_id: str) -> BinaryIO:
        if artifact_id not in self.plots:
            return super().open_reader(artifact_id)
        try:
            return self.plots[artifact_id].open("rb")
        except OSError as error:
            raise ArtifactNotFound(f"{self.plots[artifact_id]}: {error.strerror}") from error

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        raise PermissionError(_READ_ONLY)

    def remove(self, artifact_id: str) -> None:
        raise PermissionError(_READ_ONLY)


class _ShownStorage(CheckedStorage):
    """A study's storage as the dashboard shows it: without ignored trials, and with budgets and plots added.

    The additions exist in this object only; the storage is opened for reading.
    """

    def __init__(self, trials: OpenTrials, plots: _PlotStore, note: str = "") -> None:
        """Read all trials once, so that unreadable ones raise an error before the server starts."""
        super().__init__(trials.storage, str(trials.address), fresh=False, read_only=True)
        self._note = note
        self._trials = trials
        self._plots = plots
        self._searches = {trials.storage.get_study_id_from_name(label): name for name, label in trials.labels.items()}
        self._checks: dict[int, CheckedTrials] = {}
        for study_id, name in self._searches.items():
            if (check := trials.checks.get(name)) is not None:
                check.of(super().get_all_trials(study_id, deepcopy=False))
                self._checks[study_id] = check
        self.get_all_studies()

    def left_out(self) -> Iterable[str]:
        """Yield lines about the ignored trials."""
        for study_id, check in self._checks.items():
            yield from describe_left_out(check.left_out, self._trials.address, self._searches[study_id])

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return all Optuna studies with their attributes, budgets and plots added."""
        found = super().get_all_studies()
        budgets = self._trials.budgets({study.study_name: study.user_attrs for study in found})
        for study in found:
            study.system_attrs = self._added(id_of_study(study), study.system_attrs)
            if study.study_name in budgets:
                study.user_attrs = {**study.user_attrs, "budget": budgets[study.study_name]}
        return found

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return a study's system attributes, with plots added."""
        return self._added(study_id, super().get_study_system_attrs(study_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return a study's trials without the ignored ones, in the order of their numbers, with short attributes."""
        if study_id not in self._checks:
            return super().get_all_trials(study_id, deepcopy, states)
        return [
            _without_tables(trial)
            for trial in self._counting_trials(study_id, deepcopy=deepcopy)
            if states is None or trial.state in states
        ]

    def _counting_trials(self, study_id: int, *, deepcopy: bool) -> list[FrozenTrial]:
        found = self._checks[study_id].of(super().get_all_trials(study_id, deepcopy))
        return sorted(found, key=lambda trial: trial.number)

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return the best completed trial of a study, ignored ones excluded; raise ValueError if there is none."""
        if study_id not in self._checks:
            return super().get_best_trial(study_id)
        best = self._checks[study_id].best(self._counting_trials(study_id, deepcopy=True))
        if best is None:
            raise ValueError("No trials are completed yet.")
        return _without_tables(best)

    def _added(self, study_id: int, attributes: dict[str, Any]) -> dict[str, Any]:
        """Return system attributes with the name of the objective value and the plots of the search added."""
        if study_id not in self._searches:
            return attributes
        plots = {
            _ARTIFACT + artifact_id: json.dumps(
                {"artifact_id": artifact_id, "filename": path.name, "mimetype": "image/png", "encoding": None}
            )
            for artifact_id, path in self._plots.plots.items()
            if _goes_with(path.stem, self._searches[study_id])
        }
        kept = _kept(attributes)
        # A note that a user wrote elsewhere stays.
        note = {_STUDY_NOTE: self._note, _STUDY_NOTE_VERSION: 1} if self._note and _STUDY_NOTE not in kept else {}
        # Without this name the dashboard shows "Objective 0".
        return {**kept, _NAMES: ["similarity"], **plots, **note}


def _note(study: Study, report: Path) -> str:
    """Return the verdict of the last fit and a link to the report as Markdown; "" without both."""
    try:
        recipe = best_recipe(study)
    except InputError:
        recipe = None  # the trials are shown without it
    verdict = None if recipe is None else recipe.noted.verdict
    link = f"[The report]({_REPORT})" if report.is_file() else ""
    # Names of files are text, not Markdown.
    text = "" if verdict is None else re.sub(r"([\\`*_{}\[\]()#!|<>~])", r"\\\1", printable(verdict))
    return "\n\n".join(part for part in (text, link) if part)


def _without_tables(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial with the attributes that are single numbers or texts, of which a person reads some at a time."""
    shown = copy.copy(trial)
    shown.user_attrs = {
        name: value for name, value in trial.user_attrs.items() if isinstance(value, str | int | float | None)
    }
    return shown


def _kept(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the well-formed notes and file entries among a study's system attributes.

    Users create these in the dashboard. A single malformed one would prevent the page from loading.
    """
    notes: dict[str, dict[int, str]] = {}
    kept = {}
    for key, value in attributes.items():
        if (part := _NOTE.fullmatch(key)) is not None and isinstance(value, str):
            notes.setdefault(part["prefix"], {})[int(part["number"])] = value
        elif (_NOTE_VERSION.fullmatch(key) and type(value) is int) or (
            key.startswith(_ARTIFACT) and _is_artifact(value)
        ):
            kept[key] = value
    for prefix, parts in notes.items():
        if sorted(parts) == list(range(len(parts))):
            kept |= {f"{prefix}{number}": text for number, text in parts.items()}
    return kept


def _is_artifact(value: Any) -> bool:
    """Return whether an attribute describes a file in Optuna's form."""
    try:
        artifact = json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return False
    texts = ("artifact_id", "filename", "mimetype")
    return isinstance(artifact, dict) and all(isinstance(artifact.get(name), str) for name in texts)


def _goes_with(stem: str, search: str) -> bool:
    """Return whether a plot shows this search: plots of a single search are named after it, others show all."""
    if not stem.startswith(_OWN_PLOTS):
        return True
    searched = re.sub(r"/pass \d+$", "", search)
    return re.fullmatch(re.escape(_OWN_PLOTS + file_name_part(searched)) + r"(-\d+)?", stem) is not None


class _OwnPagesOnly:
    """A WSGI filter that refuses requests which other sites' pages make this browser send.

    Such a request has another origin, or another host: a name whose DNS entry was pointed to this machine.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application

    def __call__(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        port = environ["SERVER_PORT"]
        names = {HOST, "localhost"}
        hosts = {f"{name}:{port}" for name in names}
        # Browsers omit HTTP's default port.
        hosts |= names if port == "80" else set()
        origin = environ.get("HTTP_ORIGIN")
        if environ.get("HTTP_HOST") not in hosts or (
            origin is not None and origin not in map("http://{}".format, hosts)
        ):
            return _refusal("403 Forbidden", _FORBIDDEN, environ, start_response)
        return self._application(environ, start_response)


class _WithReport:
    """A WSGI filter that serves the report of the study, if there is one."""

    def __init__(self, application: Callable[..., Iterable[bytes]], report: Path) -> None:
        self._application, self._report = application, report

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != _REPORT or environ.get("REQUEST_METHOD") != "GET":
            return self._application(environ, start_response)
        try:
            page = self._report.read_bytes()
        except OSError:
            return _refusal("404 Not Found", "There is no report yet: blockfit report", environ, start_response)
        headers = [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(page)))]
        start_response("200 OK", [*headers, ("Cache-Control", "no-store")])
        return [page]


class _ReadingOnly:
    """A WSGI filter that passes GET and HEAD requests and refuses all others.

    It also hides the controls of the dashboard's pages that would change data.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # Compared in its original case, since the dashboard would accept "delete" as DELETE.
        if environ.get("REQUEST_METHOD") not in _READING:
            return _refusal(
                "405 Method Not Allowed", _READ_ONLY, environ, start_response, ("Allow", ", ".join(_READING))
            )
        # A page in the browser's cache may come from an unfiltered dashboard, so none is confirmed as unchanged.
        for name in ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH", "HTTP_RANGE"):
            environ.pop(name, None)
        began: list[tuple[str, list[tuple[str, str]]]] = []

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> None:
            began.append((status, headers))

        body = self._application(environ, start)
        status, headers = began[-1]
        if dict(headers).get("Content-Type", "").startswith("text/html") and environ["REQUEST_METHOD"] == "GET":
            page = b"".join(body).replace(b"</head>", _STYLE + b"</head>", 1)
            if hasattr(body, "close"):
                body.close()
            body = [page]
            headers = [(name, value) for name, value in headers if name.title() not in ("Content-Length", "Etag")]
            headers += [("Content-Length", str(len(page))), ("Cache-Control", "no-store")]
        start_response(status, headers)
        return body


def _refusal(
    status: str, text: str, environ: Mapping[str, Any], start_response: Callable[..., Any], *headers: tuple[str, str]
) -> Iterable[bytes]:
    """Answer with a reason: as JSON to the dashboard's own requests, whose page shows it, else as text."""
    as_json = str(environ.get("PATH_INFO", "")).startswith("/api/")
    body = (json.dumps({"reason": text}) if as_json else text).encode() + b"\n"
    kind = "application/json" if as_json else "text/plain; charset=utf-8"
    length = str(environ.get("CONTENT_LENGTH") or "")
    if length.isdecimal():
        environ["wsgi.input"].read(min(int(length), _MOST_UNREAD))
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body))), *headers])
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # On Windows this option would let a second server take over the port of the first.
    allow_reuse_address = not hasattr(socket, "SO_EXCLUSIVEADDRUSE")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore broken connections: a browser drops some whenever the user leaves a page."""


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Ignore requests: a page polls every few seconds."""

    def get_stderr(self) -> TextIO:
        """Return a stream that discards the tracebacks of the dashboard's own errors, which the browser receives."""
        return StringIO()
