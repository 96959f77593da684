"""Optuna's dashboard on a study's trials, with the study's plots beside them, for this machine only."""

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
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import wsgi

from optimizer.errors import InputError
from optimizer.reports.file_names import file_name_part
from optimizer.search import CheckedStorage, CheckedTrials, OpenTrials, best_of, completed, open_trials, told_of
from optimizer.studies import Study, StudyFolder

__all__ = ["serve_dashboard"]

HOST = "127.0.0.1"
# What optuna calls the attribute of a study that tells of a file beside it: its name goes on with the file's id.
_ARTIFACT = "artifacts:"
# And the one that tells what its values are called.
_NAMES = "study:metric_names"
# And those of notes, which lie in pieces.
_NOTE = re.compile(r"(?P<of>dashboard:(?:\d+:)?note_str:)(?P<number>\d{1,6})")
_NOTE_VERSION = re.compile(r"dashboard:(?:\d+:)?note_ver")
_OWN_PLOTS = "similarity-against-alpha-"
_FORBIDDEN = "blockfit's dashboard answers to this machine alone, and to pages of its own."
_READ_ONLY = "blockfit's dashboard is for looking: it changes, adds and deletes nothing."
_READING = ("GET", "HEAD")
_MOST_UNREAD = 1 << 20  # bytes of a request that is refused; a browser waits until they are taken
# Of the dashboard's page what would change something; by the names that it gives to assistive technology and to icons.
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
    said: Callable[[str], None] = lambda text: None,
) -> None:
    """Serve Optuna's dashboard on the study's trials until KeyboardInterrupt; `ready` is told its address.

    It listens on this machine's loopback alone, at `port` (0: any that is free), refuses requests that other sites have
    pages in the same browser make, and serves reading only: nothing is changed, added or deleted by it. Plots that a
    fit has drawn are shown with their searches. A fit may go on meanwhile. `said` is told of trials that do not count
    and are not shown.

    Raises StudyError if there are no trials or they cannot be read, InputError if the port is taken.
    """
    # Of errors in its own code the browser is told; where nobody listens, Python would print them with tracebacks.
    logging.getLogger("optuna_dashboard").addHandler(logging.NullHandler())
    with open_trials(study, storage) as trials:
        plots = _PlotStore(study.folder)
        shown = _ShownStorage(trials, plots)
        for line in shown.left_out():
            said(line)
        application = _OwnPagesOnly(_ReadingOnly(wsgi(shown, artifact_store=plots)))
        try:
            server = make_server(HOST, port, application, server_class=_Server, handler_class=_Quiet)
        except OSError as error:
            raise InputError(
                f"{port} cannot be listened on: {error.strerror}; name another, or 0 for any that is free",
                field="port",
            ) from error
        with server:
            ready(f"http://{HOST}:{server.server_port}/dashboard")
            server.serve_forever()


class _PlotStore(FileSystemArtifactStore):
    """The plots in a study's folder as artifacts, and files that users have added in a folder beside them; all as is.

    A plot's id follows from its name, so that the dashboard shows it as it is now, however often a fit draws it.
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
    """A study's trials as the dashboard is to show them: those that count, with their budget, and with plots.

    What is added is added here, and not in the storage, which is open for reading.
    """

    def __init__(self, trials: OpenTrials, plots: _PlotStore) -> None:
        """Read all trials once, so that what cannot be read is told before anything is served."""
        super().__init__(trials.storage, str(trials.address), fresh=False, read_only=True)
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
        """Return lines on the trials that do not count."""
        for study_id, check in self._checks.items():
            yield from told_of(check.left_out, self._trials.address, self._searches[study_id])

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return all Optuna studies with their attributes."""
        found = super().get_all_studies()
        budgets = self._trials.budgets({study.study_name: study.user_attrs for study in found})
        for study in found:
            study.system_attrs = self._added(study._study_id, study.system_attrs)
            if study.study_name in budgets:
                study.user_attrs = {**study.user_attrs, "budget": budgets[study.study_name]}
        return found

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return a study's system attributes."""
        return self._added(study_id, super().get_study_system_attrs(study_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return a study's trials that count, in the order of their numbers."""
        if study_id not in self._checks:
            return super().get_all_trials(study_id, deepcopy, states)
        found = self._checks[study_id].of(super().get_all_trials(study_id, deepcopy))
        return sorted(
            (trial for trial in found if states is None or trial.state in states), key=lambda trial: trial.number
        )

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return the best of a study's trials that count. Raises ValueError if none is completed."""
        if study_id not in self._checks:
            return super().get_best_trial(study_id)
        best = best_of(completed(self.get_all_trials(study_id)))
        if best is None:
            raise ValueError("No trials are completed yet.")
        return best

    def _added(self, study_id: int, attributes: dict[str, Any]) -> dict[str, Any]:
        """Return system attributes with what values are called, and with the plots of the search."""
        if study_id not in self._searches:
            return attributes
        plots = {
            _ARTIFACT + artifact_id: json.dumps(
                {"artifact_id": artifact_id, "filename": path.name, "mimetype": "image/png", "encoding": None}
            )
            for artifact_id, path in self._plots.plots.items()
            if _goes_with(path.stem, self._searches[study_id])
        }
        # "Objective 0", else.
        return {**_kept(attributes), _NAMES: ["similarity"], **plots}


def _kept(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the system attributes of a study that users have made by the dashboard: notes, and files they added.

    A page could not be shown at all for one that is not what it should be.
    """
    notes: dict[str, dict[int, str]] = {}
    kept = {}
    for key, value in attributes.items():
        if (part := _NOTE.fullmatch(key)) is not None and isinstance(value, str):
            notes.setdefault(part["of"], {})[int(part["number"])] = value
        elif (_NOTE_VERSION.fullmatch(key) and type(value) is int) or (
            key.startswith(_ARTIFACT) and _is_artifact(value)
        ):
            kept[key] = value
    for of, parts in notes.items():
        if sorted(parts) == list(range(len(parts))):
            kept |= {f"{of}{number}": text for number, text in parts.items()}
    return kept


def _is_artifact(told: Any) -> bool:
    try:
        artifact = json.loads(told)
    except (TypeError, ValueError, RecursionError):
        return False
    texts = ("artifact_id", "filename", "mimetype")
    return isinstance(artifact, dict) and all(isinstance(artifact.get(name), str) for name in texts)


def _goes_with(stem: str, search: str) -> bool:
    """Whether a plot shows this search: those of one search are named after it, the others show all."""
    if not stem.startswith(_OWN_PLOTS):
        return True
    searched = re.sub(r"/pass \d+$", "", search)
    return re.fullmatch(re.escape(_OWN_PLOTS + file_name_part(searched)) + r"(-\d+)?", stem) is not None


class _OwnPagesOnly:
    """Refuses what a page of another site could make this browser send, and so read.

    Such a request names another host (a name that was made to lead here), or another origin.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application

    def __call__(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        port = environ["SERVER_PORT"]
        names = {HOST, "localhost"}
        hosts = {f"{name}:{port}" for name in names}
        # Browsers leave out the port that HTTP has by itself.
        hosts |= names if port == "80" else set()
        origin = environ.get("HTTP_ORIGIN")
        if environ.get("HTTP_HOST") not in hosts or (
            origin is not None and origin not in map("http://{}".format, hosts)
        ):
            return _refusal("403 Forbidden", _FORBIDDEN, environ, start_response)
        return self._application(environ, start_response)


class _ReadingOnly:
    """Lets requests through that read, and refuses all others, whatever they are called and whatever they ask for.

    Of pages it leaves out the buttons that would change something.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # As it was sent: the dashboard itself would take "delete" for DELETE.
        if environ.get("REQUEST_METHOD") not in _READING:
            return _refusal(
                "405 Method Not Allowed", _READ_ONLY, environ, start_response, ("Allow", ", ".join(_READING))
            )
        # A page that the browser has from elsewhere has the buttons.
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
    """Answer with a reason, in the form that the dashboard's own page shows to users where that asked."""
    asked = str(environ.get("PATH_INFO", "")).startswith("/api/")
    body = (json.dumps({"reason": text}) if asked else text).encode() + b"\n"
    kind = "application/json" if asked else "text/plain; charset=utf-8"
    sent = str(environ.get("CONTENT_LENGTH") or "")
    if sent.isdecimal():
        environ["wsgi.input"].read(min(int(sent), _MOST_UNREAD))
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body))), *headers])
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # On Windows a second server would take the first one's port over.
    allow_reuse_address = not hasattr(socket, "SO_EXCLUSIVEADDRUSE")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a connection that broke: a browser drops some whenever a page is left."""


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing of requests: a page asks for news every few seconds."""

    def get_stderr(self) -> TextIO:
        """Where the dashboard writes tracebacks of its own errors: nowhere; the browser is told of them."""
        return StringIO()
