"""Send the entries of a journal that have files. They wait separately, so a store that fails or hangs delays no metric."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from crmuons.tracking import artifacts, registry
from crmuons.tracking.journal import Entry, Journal
from crmuons.tracking.server import Server, mlflow_run_of

SECONDS_OF_FAILURES = 60.0  # Files that fail may cost a timeout of 20 s each. After this time, the others wait.


class FileDelivery:
    """Delivers artifacts, figures, models and registrations to the run of a journal.

    Args:
        journal: the run's journal.
        server: the server; another thread may call its `send_entries`.
        named: whether the user named this server, and not only the journal (`artifacts.check_root`).
    """

    def __init__(self, journal: Journal, server: Server, *, named: bool = True) -> None:
        self._journal, self._server, self._named = journal, server, named
        self._root_is_checked = False

    def send(self) -> Iterator[int]:
        """Send the waiting entries; yield 1 for each. An entry that fails delays only later entries of its own path.

        Raises:
            Exception: the first error, after all entries were tried or failures took SECONDS_OF_FAILURES. Stores are
                plug-ins with their own errors.
        """
        # Return without a request, because most rounds have no file.
        if not self._server.sent.waiting:
            return
        self._server.connect()
        # Grouped by place: two versions of one artifact must arrive in order; other artifacts may overtake each other.
        same_path: dict[str, list[int]] = {}
        for offset in self._server.sent.waiting:
            same_path.setdefault(_path(self._journal.entry_at(offset)), []).append(offset)
        errors: list[Exception] = []
        failing = 0.0
        for offsets in same_path.values():
            began = time.monotonic()
            try:
                for offset in sorted(offsets):  # A later file must replace an earlier one.
                    self._send(self._journal.entry_at(offset))
                    self._note(remove=[offset])
                    yield 1
            except Exception as error:  # noqa: BLE001 - see Raises
                errors.append(error)
                # Failed entries go to the end, so that they do not use up the time of the others.
                unsent = [offset for offset in offsets if offset in self._server.sent.waiting]
                self._note(remove=unsent, add=unsent)
                failing += time.monotonic() - began
                if failing > SECONDS_OF_FAILURES:
                    break
        if errors:
            raise errors[0]

    def _send(self, entry: Entry) -> None:
        try:
            self._deliver(entry)
        except Exception as error:
            # A file that is gone or foreign will never work; all other errors are tried again.
            if not (isinstance(error, artifacts.UnusableFileError) or self._server.is_refusal(error)):
                raise
            self._server.note_refused(entry, error)

    def _note(self, *, remove: Sequence[int], add: Sequence[int] = ()) -> None:
        sent = self._server.sent
        with self._server.guard:
            sent.waiting = [offset for offset in sent.waiting if offset not in remove] + [*add]
            self._journal.save_sent(sent)

    def _deliver(self, entry: Entry) -> None:
        client, run_id = self._server.client, self._server.run_id
        if entry["kind"] == "registration":
            registry.register(client, mlflow_run_of(client, entry["of"]), entry)
            return
        path = artifacts.kept_file(self._journal, entry["file"])
        # Checked once: the place of artifacts does not change within a run.
        if not self._root_is_checked:
            artifacts.check_root(client.get_run(run_id), self._server.uri, named=self._named)
            self._root_is_checked = True
        if entry["kind"] == "model":
            assert self._server.sent.experiment_id is not None, "set together with run_id"
            artifacts.log_model(client, run_id, self._server.sent.experiment_id, path, entry["file"])
            return
        artifacts.log_files(client, run_id, path, entry)
        if entry["kind"] == "figure":
            client.set_tag(run_id, "mlflow.loggedImages", "True")  # Makes the UI show its image grid.


def _path(entry: Entry) -> str:
    """Return a text that identifies the place of an entry's files on the server."""
    if entry["kind"] == "artifact":
        return f"{entry['folder']}/{Path(entry['file']).name}"
    return repr(entry)
