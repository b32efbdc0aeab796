"""A mirror of the Hugging Face hub for tests, on 127.0.0.1: repositories held in memory, the hub's paths and headers.

The invariant: a client that is pointed at ``endpoint`` by HF_ENDPOINT cannot tell it from the hub as far as reading
datasets and single files goes. huggingface_hub reads HF_ENDPOINT when it is imported, so clients run in a process of
their own: ``run_with_hub``.

    with HubMirror(datasets={"rajpurkar/squad": {"train.jsonl.gz": rows}}) as mirror:
        run_with_hub(mirror, tmp_path, "from pausebench.data import hub; ...")
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

Files = Mapping[str, bytes]

_RESOLVE = re.compile(r"/(datasets/)?(?P<id>.+?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_API = re.compile(
    r"/api/(datasets|models)/(?P<id>.+?)(?:/(?P<verb>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<path>.*))?)?"
)


class Request(NamedTuple):
    """One request that the mirror saw: what was asked for, which bytes of it ("" for all), and the answer's status."""

    method: str
    path: str
    range: str
    status: int


class HubMirror:
    """Serves ``datasets`` and ``models``, each {repo id: {path: bytes}}, from entering the context to ``stop``.

    moved: {old id: new id}, answered with 307 the way the hub does after a rename. gated: dataset ids whose files need
    a token. ``commit`` adds a revision; every earlier one stays readable by its sha, "main" is the latest.
    """

    def __init__(
        self,
        datasets: Mapping[str, Files] | None = None,
        models: Mapping[str, Files] | None = None,
        moved: Mapping[str, str] | None = None,
        gated: Iterable[str] = (),
    ) -> None:
        self.moved = dict(moved or {})
        self.gated = set(gated)
        self.requests: list[Request] = []
        self._repos: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}
        self._failures: list[int] = []
        for kind, repos in (("datasets", datasets), ("models", models)):
            for repo_id, files in (repos or {}).items():
                self.commit(kind, repo_id, files)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"mirror": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def commit(self, kind: str, repo_id: str, files: Files, sha: str | None = None) -> str:
        """A new revision of a repository, ``kind`` being "datasets" or "models"; its sha, a digest of the files.

        sha: the one to go by instead, where a client has it pinned.
        """
        digest = hashlib.sha1(f"{kind}/{repo_id}".encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + hashlib.sha1(content).digest())
        sha = sha or digest.hexdigest()
        self._repos.setdefault((kind, repo_id), {})[sha] = dict(files)
        return sha

    def sha(self, repo_id: str, kind: str = "datasets") -> str:
        """The latest revision, which "main" names; of a moved repository, its new place's."""
        return list(self._repos[kind, self.moved.get(repo_id, repo_id)])[-1]

    def fail(self, *statuses: int) -> None:
        """Answer the next requests with these statuses, one each: 0 as ever, 200 with a login page."""
        self._failures.extend(statuses)

    def forget(self) -> None:
        self.requests.clear()

    def stop(self) -> None:
        """From here on the port is closed: connections are refused."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> HubMirror:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Refusal(Exception):
    """An answer that is not 200: status, the hub's error code, its message, other headers."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = (
            headers | ({"X-Error-Code": code} if code else {}) | ({"X-Error-Message": message} if code else {})
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mirror: HubMirror

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: what was asked for is in ``mirror.requests``."""

    def _answer(self) -> None:
        # Read at once: a body that is left unread would be taken for the connection's next request.
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        try:
            if failure := self.mirror._failures.pop(0) if self.mirror._failures else 0:
                status, headers, content = failure, {"Content-Type": "text/html"}, b"<html>not the hub</html>"
            elif match := _RESOLVE.fullmatch(urlsplit(self.path).path):
                kind = "datasets" if match[1] else "models"
                status, headers, content = self._file(
                    kind, match["id"], unquote(match["revision"]), unquote(match["path"])
                )
            elif match := _API.fullmatch(urlsplit(self.path).path):
                status, headers, content = 200, {"Content-Type": "application/json"}, self._api(match)
            else:
                raise _Refusal(404, "", "Sorry, we can't find the page you are looking for.")
        except _Refusal as refusal:
            status, headers = refusal.status, refusal.headers
            content = json.dumps({"error": str(refusal)}).encode()
        self.mirror.requests.append(Request(self.command, path, self.headers.get("Range") or "", status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _files(self, kind: str, repo_id: str, revision: str, is_file: bool = False) -> tuple[str, dict[str, bytes]]:
        """The revision's sha and files, or the hub's refusal."""
        if repo_id in self.mirror.moved:
            raise _Refusal(307, Location=self.path.replace(repo_id, self.mirror.moved[repo_id], 1))
        revisions = self.mirror._repos.get((kind, repo_id))
        if revisions is None:
            raise _Refusal(404, "RepoNotFound", "Repository not found")
        # The hub shows a gated repository's description to everyone, and its files to those who were let in.
        if is_file and repo_id in self.mirror.gated and not self.headers.get("Authorization"):
            raise _Refusal(401, "GatedRepo", f"Access to dataset {repo_id} is restricted. You must be authenticated.")
        sha = self.mirror.sha(repo_id, kind) if revision == "main" else revision
        if sha not in revisions:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, revisions[sha]

    def _file(self, kind: str, repo_id: str, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        sha, files = self._files(kind, repo_id, revision, is_file=True)
        if path not in files:
            raise _Refusal(404, "EntryNotFound", "Entry not found", X_Repo_Commit=sha)
        content = files[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_blob_id(content)}"', "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream"
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return 200, headers, content
        first = int(wanted[1]) if wanted[1] else max(0, len(content) - int(wanted[2]))
        last = min(int(wanted[2]), len(content) - 1) if wanted[1] and wanted[2] else len(content) - 1
        if first > last:
            raise _Refusal(416, Content_Range=f"bytes */{len(content)}")
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return 206, headers, content[first : last + 1]

    def _api(self, match: re.Match[str]) -> bytes:
        kind, repo_id, verb = match[1], match["id"], match["verb"]
        sha, files = self._files(kind, repo_id, unquote(match["revision"] or "main"))
        entries = _tree(files)
        if verb == "tree":
            under = unquote(match["path"] or "")
            inside = [entry for entry in entries if not under or entry["path"].startswith(f"{under}/")]
            if under and not inside:
                raise _Refusal(404, "EntryNotFound", f"{under} does not exist on {sha}")
            if parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() != "true":
                depth = under.count("/") + 1 if under else 0
                inside = [entry for entry in inside if entry["path"].count("/") == depth]
            return json.dumps(inside).encode()
        if verb == "paths-info":
            wanted = parse_qs(self.body.decode()).get("paths", [])
            return json.dumps([entry for entry in entries if entry["path"] in wanted]).encode()
        about: dict[str, Any] = {"id": repo_id, "sha": sha, "private": False, "disabled": False}
        about |= {"gated": "auto" if repo_id in self.mirror.gated else False, "downloads": 0, "likes": 0, "tags": []}
        return json.dumps(about | {"siblings": [{"rfilename": path} for path in files]}).encode()


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _tree(files: Files) -> list[dict[str, Any]]:
    """Every file and folder of a revision, as the hub lists them."""
    folders = {str(parent) for path in files for parent in Path(path).parents if str(parent) != "."}
    listed = [{"type": "directory", "path": path, "oid": _blob_id(path.encode()), "size": 0} for path in folders]
    listed += [
        {"type": "file", "path": path, "oid": _blob_id(content), "size": len(content)}
        for path, content in files.items()
    ]
    return sorted(listed, key=lambda entry: str(entry["path"]))


def run_with_hub(
    hub: HubMirror | str, home: Path, code_or_argv: str | Sequence[str], timeout: float = 120.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python code, or a command, that takes ``hub`` (a mirror, or any address) for the hub.

    home: where HF_HOME goes; the same folder in a second call has the first one's cache. environment: further
    variables. The caller's own HF_*, token and proxy variables are not handed on.
    """
    root = str(Path(__file__).parents[1])
    settings = ("HF_", "HUGGING", "DATASETS_")
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(settings) and not name.lower().endswith("_proxy")
    }
    endpoint = hub if isinstance(hub, str) else hub.endpoint
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home / "huggingface"), "PYTHONPATH": root} | environment
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} | environment
    home.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-c", code_or_argv] if isinstance(code_or_argv, str) else list(code_or_argv)
    return subprocess.run(
        argv, env=inherited | environment, cwd=home, capture_output=True, text=True, timeout=timeout, check=False
    )
