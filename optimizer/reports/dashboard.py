"""Optuna's dashboard on a study's trials, with the study's plots beside them, for this machine only."""

import json
import logging
import re
import socket
import warnings
from collections.abc import Callable, Iterable, Mapping
from io import StringIO
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, BinaryIO, TextIO
from uuid import NAMESPACE_URL, uuid5
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna_dashboard import wsgi

from optimizer.errors import InputError
from optimizer.reports.lettering import file_name_part
from optimizer.search import Study, open_trials

__all__ = ["serve_dashboard"]

HOST = "127.0.0.1"
# What optuna calls the attribute of a study that tells of a file beside it: its name goes on with the file's id.
_ARTIFACT = "artifacts:"
_OWN_PLOTS = "similarity-against-alpha-"
_FORBIDDEN = b"blockfit's dashboard answers to this machine alone, and to pages of its own.\n"


def serve_dashboard(
    study: Study, storage: str | None = None, *, port: int = 8080, ready: Callable[[str], None] = lambda address: None
) -> None:
    """Serve Optuna's dashboard on the study's trials until KeyboardInterrupt; `ready` is told its address.

    It listens on this machine's loopback alone, at `port` (0: any that is free), and refuses requests that other sites
    have pages in the same browser make. Plots that a fit has drawn are shown with their searches; what a user adds
    there lies in `artifacts` in the study's folder. A fit may go on meanwhile.

    Raises StudyError if there are no trials or they cannot be read, InputError if the port is taken.
    """
    # Of errors in its own code the browser is told; where nobody listens, Python would print them with tracebacks.
    logging.getLogger("optuna_dashboard").addHandler(logging.NullHandler())
    with open_trials(study, storage) as (trials, labels):
        plots = _PlotStore(study.folder)
        _name_values(trials, labels.values())
        _offer_plots(trials, labels, plots)
        application = _OwnPagesOnly(wsgi(trials, artifact_store=plots))
        try:
            server = make_server(HOST, port, application, server_class=_Server, handler_class=_Quiet)
        except OSError as error:
            raise InputError(
                f"--port: {port} cannot be listened on: {error.strerror}; name another, or 0 for any that is free"
            ) from error
        with server:
            ready(f"http://{HOST}:{server.server_port}/dashboard")
            server.serve_forever()


class _PlotStore(FileSystemArtifactStore):
    """The plots in a study's folder as artifacts that cannot be changed, and what users add in a folder beside them.

    A plot's id follows from its name, so that the dashboard shows it as it is now, however often a fit draws it.
    """

    def __init__(self, folder: Path) -> None:
        added = folder / "artifacts"
        super().__init__(added)
        self._added = added
        self.plots = {str(uuid5(NAMESPACE_URL, path.name)): path for path in sorted((folder / "plots").glob("*.png"))}

    def open_reader(self, artifact_id: str) -> BinaryIO:
        if artifact_id not in self.plots:
            return super().open_reader(artifact_id)
        try:
            return self.plots[artifact_id].open("rb")
        except OSError as error:
            raise ArtifactNotFound(f"{self.plots[artifact_id]}: {error.strerror}") from error

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self._added.mkdir(exist_ok=True)
        super().write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        if artifact_id not in self.plots:
            super().remove(artifact_id)


def _name_values(trials: BaseStorage, labels: Iterable[str]) -> None:
    """Have the values of trials called what they are, not "Objective 0"."""
    for label in labels:
        study = optuna.load_study(study_name=label, storage=trials, sampler=optuna.samplers.RandomSampler())
        if study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names(["similarity"])


def _offer_plots(trials: BaseStorage, labels: Mapping[str, str], store: _PlotStore) -> None:
    """Tell the dashboard which plots go with which of the searches {name: what Optuna calls it}."""
    for name, label in labels.items():
        study_id = trials.get_study_id_from_name(label)
        there = trials.get_study_system_attrs(study_id)
        for artifact_id, path in store.plots.items():
            key = _ARTIFACT + artifact_id
            if not _goes_with(path.stem, name):
                continue
            told = json.dumps(
                {"artifact_id": artifact_id, "filename": path.name, "mimetype": "image/png", "encoding": None}
            )
            if there.get(key) != told:
                trials.set_study_system_attr(study_id, key, told)


def _goes_with(stem: str, search: str) -> bool:
    """Whether a plot shows this search: those of one search are named after it, the others show all."""
    if not stem.startswith(_OWN_PLOTS):
        return True
    searched = re.sub(r"/pass \d+$", "", search)
    return re.fullmatch(re.escape(_OWN_PLOTS + file_name_part(searched)) + r"(-\d+)?", stem) is not None


class _OwnPagesOnly:
    """Refuses what a page of another site could make this browser send: the dashboard can delete studies.

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
            start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
            return [_FORBIDDEN]
        return self._application(environ, start_response)


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
