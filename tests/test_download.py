"""Downloads against stand-ins of download.pytorch.org and of Kaggle's service on 127.0.0.1.

Nothing leaves the machine. Kaggle's stand-in is spoken to by the real kagglehub client: one POST
to DownloadDataset, answered as Kaggle answers it, by a redirect to a storage host that gives the
archive with its length and MD5.
"""

import base64
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from transferlab import download
from transferlab.download import (
    HYMENOPTERA_COUNTS,
    MANGA_FACE_COUNTS,
    DownloadError,
    download_hymenoptera,
    download_manga_faces,
    fetch_from_kaggle,
    fetch_zip,
    unpack_zip,
)
from transferlab.errors import DataError, UserError
from transferlab.files import sweep_scratch

API_PATH = "/v1/datasets.DatasetApiService/DownloadDataset"


class StandIn(BaseHTTPRequestHandler):
    """Answers from `server.routes`: path -> (status, headers, body, seconds to hang after it)."""

    def answer(self):
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.command, self.path, asked))
        status, headers, body, hang = self.server.routes.get(self.path, (404, {}, b"", 0))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.wfile.flush()
            self.server.closing.wait(hang)
        self.close_connection = True

    do_GET = do_POST = do_HEAD = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.daemon_threads = True
    server.routes, server.asked, server.closing = {}, [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    monkeypatch.setattr(download, "HYMENOPTERA_URL", f"{server.url}/hymenoptera_data.zip")
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent_url():
    """A host that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def zip_bytes(counts, *, top="", extra=(), compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for folder, count in counts.items():
            for i in range(count):
                archive.writestr(f"{top}{folder}/{i:03d}.jpg", f"image {folder} {i}")
        for member, content in extra:
            archive.writestr(member, content)
    return buffer.getvalue()


def hymenoptera_zip(**options):
    return zip_bytes(HYMENOPTERA_COUNTS, top="hymenoptera_data/", **options)


def serve_hymenoptera(server, body, *, status=200, headers=None, hang=0):
    server.routes["/hymenoptera_data.zip"] = (status, headers or {}, body, hang)


def file_counts(folder):
    return Counter(
        path.parent.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def assert_nothing_left(tmp_path, root):
    """No target, no temporary folder, no zip, and nothing beside the data root."""
    assert [path.name for path in tmp_path.iterdir()] in ([], [root.name])
    assert not root.exists() or not list(root.iterdir())


def assert_helpful(error, *parts):
    text = str(error.value)
    assert "\n" not in text
    for part in ("By hand", "data_dir", *parts):
        assert str(part) in text


# --- Hymenoptera ------------------------------------------------------------


@pytest.mark.parametrize("length_given", [True, False])
def test_hymenoptera_comes_down_whole(server, tmp_path, capsys, length_given):
    body = hymenoptera_zip(compression=zipfile.ZIP_DEFLATED)
    serve_hymenoptera(server, body, headers={} if length_given else {"Content-Length": None})
    target = download_hymenoptera(tmp_path / "data")
    assert target == tmp_path / "data" / "hymenoptera_data"
    assert file_counts(target) == HYMENOPTERA_COUNTS
    assert (target / "val/bees/007.jpg").read_text() == "image val/bees 7"
    assert os.listdir(tmp_path / "data") == ["hymenoptera_data"]
    assert "hymenoptera_data.zip" in capsys.readouterr().out


def test_existing_targets_are_returned_untouched(server, tmp_path):
    for name, fetch in (
        ("hymenoptera_data", download_hymenoptera),
        ("manga_facial_expressions", download_manga_faces),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
        assert fetch(tmp_path) == tmp_path / name
        assert os.listdir(tmp_path / name) == ["mine.txt"]
    assert not server.asked


def test_truncated_body(server, tmp_path):
    body = hymenoptera_zip()
    serve_hymenoptera(server, body[: len(body) // 2], headers={"Content-Length": str(len(body))})
    with pytest.raises(DownloadError) as error:
        download_hymenoptera(tmp_path / "data")
    assert_helpful(
        error,
        server.url,
        f"{len(body) // 2} of {len(body)} bytes",
        tmp_path / "data/hymenoptera_data",
    )
    assert_nothing_left(tmp_path, tmp_path / "data")
    serve_hymenoptera(server, body)
    assert file_counts(download_hymenoptera(tmp_path / "data")) == HYMENOPTERA_COUNTS


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_http_errors(server, tmp_path, status):
    serve_hymenoptera(server, b"no", status=status)
    with pytest.raises(DownloadError) as error:
        download_hymenoptera(tmp_path / "data")
    assert_helpful(error, status)
    assert_nothing_left(tmp_path, tmp_path / "data")


def test_no_server(tmp_path, monkeypatch, server):
    monkeypatch.setattr(download, "HYMENOPTERA_URL", "http://127.0.0.1:9/hymenoptera_data.zip")
    with pytest.raises(DownloadError) as error:
        download_hymenoptera(tmp_path / "data")
    assert_helpful(error, "refused")
    assert_nothing_left(tmp_path, tmp_path / "data")


def test_unknown_host(tmp_path, monkeypatch, server):
    def no_name(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    monkeypatch.setattr(download, "HYMENOPTERA_URL", "http://no-such-host.invalid/a.zip")
    with pytest.raises(DownloadError, match="Name or service not known"):
        download_hymenoptera(tmp_path / "data")


def test_silent_host_is_given_up(tmp_path, monkeypatch, server, silent_url):
    monkeypatch.setattr(download, "HYMENOPTERA_URL", f"{silent_url}/hymenoptera_data.zip")
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(DownloadError, match="timed out"):
        download_hymenoptera(tmp_path / "data")
    assert time.monotonic() - began < 5
    assert_nothing_left(tmp_path, tmp_path / "data")
    assert download.CONNECT_SECONDS < 15


def test_stalled_body_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.2)
    serve_hymenoptera(server, b"PK", headers={"Content-Length": "100"}, hang=30)
    with pytest.raises(DownloadError, match="timed out"):
        download_hymenoptera(tmp_path / "data")
    assert_nothing_left(tmp_path, tmp_path / "data")


@pytest.mark.parametrize("damage", ["crc", "not a zip", "cut, no length"])
def test_damaged_archive_is_not_a_download_error(server, tmp_path, damage):
    body = hymenoptera_zip()
    headers = {}
    if damage == "crc":
        body = body.replace(b"image val/ants 3\x50", b"image val/ants 4\x50", 1)
        assert body != hymenoptera_zip()
    elif damage == "not a zip":
        body = b"<html>please log in to this network</html>"
    else:
        body, headers = body[:-40], {"Content-Length": None}
    serve_hymenoptera(server, body, headers=headers)
    with pytest.raises(UserError, match="came down damaged") as error:
        download_hymenoptera(tmp_path / "data")
    assert error.type is UserError
    assert_helpful(error)
    assert_nothing_left(tmp_path, tmp_path / "data")


def link(name):
    member = zipfile.ZipInfo(name)
    member.create_system = 3
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    "member",
    [
        "../escaped.jpg",
        "hymenoptera_data/../../../escaped.jpg",
        "/escaped.jpg",
        "..\\escaped.jpg",
        "C:\\escaped.jpg",
        link("hymenoptera_data/train/ants/link.jpg"),
    ],
    ids=str,
)
def test_unsafe_members_are_refused(server, tmp_path, monkeypatch, member):
    serve_hymenoptera(server, hymenoptera_zip(extra=[(member, "../../../escaped.jpg")]))
    monkeypatch.setattr(
        zipfile.ZipFile, "extractall", lambda *_: pytest.fail("something was unpacked")
    )
    with pytest.raises(UserError, match="unsafe member") as error:
        download_hymenoptera(tmp_path / "data")
    assert error.type is UserError
    assert_nothing_left(tmp_path, tmp_path / "data")


def test_wrong_counts(server, tmp_path):
    serve_hymenoptera(
        server, zip_bytes(HYMENOPTERA_COUNTS | {"val/bees": 82}, top="hymenoptera_data/")
    )
    with pytest.raises(UserError) as error:
        download_hymenoptera(tmp_path / "data")
    assert error.type is UserError
    assert_helpful(error, "val/bees 83", "val/bees 82")
    assert_nothing_left(tmp_path, tmp_path / "data")


def test_hidden_files_do_not_count(server, tmp_path):
    extra = [("hymenoptera_data/train/ants/._000.jpg", "x"), ("hymenoptera_data/.DS_Store", "x")]
    serve_hymenoptera(server, hymenoptera_zip(extra=extra))
    assert download_hymenoptera(tmp_path).is_dir()


@pytest.mark.parametrize("where", ["bar", "unpacking", "renaming"])
def test_interrupted_by_the_user(server, tmp_path, monkeypatch, where):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    def unpack_one_then_interrupt(archive, folder, *_):
        archive.extract(archive.namelist()[0], folder)
        raise KeyboardInterrupt

    serve_hymenoptera(server, hymenoptera_zip())
    with monkeypatch.context() as patched:
        if where == "bar":
            patched.setattr(download.tqdm, "update", interrupt)
        elif where == "unpacking":
            patched.setattr(zipfile.ZipFile, "extractall", unpack_one_then_interrupt)
        else:
            patched.setattr(Path, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            download_hymenoptera(tmp_path / "data")
    assert_nothing_left(tmp_path, tmp_path / "data")
    assert file_counts(download_hymenoptera(tmp_path / "data")) == HYMENOPTERA_COUNTS


def test_killed_while_downloading(server, tmp_path):
    body = hymenoptera_zip()
    serve_hymenoptera(server, body[:-10], headers={"Content-Length": str(len(body))}, hang=30)
    code = (
        "import sys; from transferlab import download; download.HYMENOPTERA_URL = sys.argv[1]; "
        "download.download_hymenoptera(sys.argv[2])"
    )
    command = [sys.executable, "-c", code, download.HYMENOPTERA_URL, str(tmp_path)]
    run = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".transferlab-*/*.zip")) and time.monotonic() < deadline:
        time.sleep(0.02)
    run.kill()
    run.wait()
    (left_over,) = tmp_path.iterdir()
    assert left_over.name.startswith(".transferlab-")

    serve_hymenoptera(server, body)
    assert file_counts(download_hymenoptera(tmp_path)) == HYMENOPTERA_COUNTS
    assert os.listdir(tmp_path) == ["hymenoptera_data"]  # what was left is gone


@pytest.mark.parametrize(
    ("drip", "headers"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", "whole"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "whole"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "whole"),
        (b"HTTP/1.1 200 OK\r\nX: ", "endless"),
    ],
    ids=["length", "no length", "chunk size", "header"],
)
@pytest.mark.parametrize("fetch", ["command", "notebook"])
def test_a_server_that_trickles_is_given_up(fetch, drip, headers, tmp_path, monkeypatch):
    """Never silent for long, never done: a byte every 20 ms."""
    with dripping(drip) as url:
        monkeypatch.setattr(download, "HYMENOPTERA_URL", url)
        monkeypatch.setattr(download, "DOWNLOAD_SECONDS", 0.3)
        began = time.monotonic()
        if fetch == "command":
            with pytest.raises(DownloadError, match="not whole after 0.3 s"):
                download_hymenoptera(tmp_path / "data")
        else:
            with pytest.raises(DataError, match="TimeoutError"):
                fetch_zip(url, tmp_path / "data" / "hymenoptera_data", seconds=0.3)
        assert time.monotonic() - began < 3
    assert_nothing_left(tmp_path, tmp_path / "data")


@contextmanager
def dripping(start):
    """The address of a server that begins its answer and then gives a digit every 20 ms."""
    over = threading.Event()

    def serve(listener):
        try:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(start)
                while not over.wait(0.02):
                    connection.sendall(b"0")
        except OSError:
            pass  # the other side has gone

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/hymenoptera_data.zip"
        over.set()
        thread.join(2)


def test_redirects_in_a_circle_are_given_up(server, tmp_path):
    circle = {"Location": download.HYMENOPTERA_URL}
    serve_hymenoptera(server, b"", status=302, headers=circle)
    with pytest.raises(DownloadError, match="infinite loop") as error:
        download_hymenoptera(tmp_path / "data")
    assert_helpful(error)
    with pytest.raises(DataError, match="HTTPError 302"):
        fetch_zip(download.HYMENOPTERA_URL, tmp_path / "data" / "hymenoptera_data")
    assert_nothing_left(tmp_path, tmp_path / "data")


def test_a_length_that_is_too_short_is_told(server, tmp_path):
    body = hymenoptera_zip()
    serve_hymenoptera(server, body, headers={"Content-Length": str(len(body) - 10)})
    with pytest.raises(UserError, match="came down damaged"):
        download_hymenoptera(tmp_path / "data")
    assert_nothing_left(tmp_path, tmp_path / "data")


def test_a_body_without_end_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "LARGEST_DOWNLOAD", 3e5)
    serve_hymenoptera(server, bytes(10**6), headers={"Content-Length": None})
    with pytest.raises(DownloadError, match="larger than 0 MB"):
        download_hymenoptera(tmp_path / "data")
    assert_nothing_left(tmp_path, tmp_path / "data")


def test_another_download_that_was_first_is_taken(server, tmp_path, monkeypatch):
    target = tmp_path / "hymenoptera_data"

    def meanwhile(folder, *_):
        target.mkdir()
        (target / "theirs.txt").write_text("theirs")

    serve_hymenoptera(server, hymenoptera_zip())
    monkeypatch.setattr(download, "check_counts", meanwhile)
    assert download_hymenoptera(tmp_path) == target
    assert os.listdir(tmp_path) == [target.name] and os.listdir(target) == ["theirs.txt"]


# --- archives that are too much, or not what they say -----------------------------------


def zip_of(member, content, *, compression=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(member, content)
    return buffer.getvalue()


def says(body, size):
    """An archive of 10 MB whose directory says that it is of another size."""
    return body.replace((10**7).to_bytes(4, "little"), size.to_bytes(4, "little"))


def unpacked(body, tmp_path):
    """The error that unpacking gives; nothing lies beside the folder then."""
    archive = tmp_path / "data.zip"
    archive.write_bytes(body)
    with pytest.raises(UserError) as error:
        unpack_zip(archive, tmp_path / "unpacked", "By hand: in data_dir.")
    assert_helpful(error)
    assert set(os.listdir(tmp_path)) <= {"data.zip", "unpacked"}
    return str(error.value)


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is(tmp_path, server):
    body = says(zip_of("hymenoptera_data/train/ants/0.jpg", bytes(10**7)), 1_260_000_000)
    assert "unpacks to 1260 MB in 1 files, at most 1000 MB" in unpacked(body, tmp_path)
    assert not (tmp_path / "unpacked").exists()
    serve_hymenoptera(server, body)
    with pytest.raises(DataError, match="unpacks to more than 1 GB"):
        fetch_zip(download.HYMENOPTERA_URL, tmp_path / "data" / "hymenoptera_data")


def test_an_archive_that_holds_more_than_it_says_is_damaged(tmp_path):
    """The sizes in its directory are mended to pass for small."""
    body = says(zip_of("a.jpg", bytes(10**7)), 100)
    assert "damaged" in unpacked(body, tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("a.jpg")) <= 100


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MOST_MEMBERS", 3)
    assert "in 4 files" in unpacked(zip_bytes({"a": 4}), tmp_path)


def test_members_that_no_disk_takes_are_the_archives_fault(tmp_path):
    for member in ("x" * 300, "/".join("d" * 100 for _ in range(60)) + "/a.jpg"):
        assert "damaged" in unpacked(zip_of(member, "x"), tmp_path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", "file")
        archive.writestr("a/b", "below a file")
    assert "damaged" in unpacked(buffer.getvalue(), tmp_path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_byte_anywhere_is_one_clear_error_or_none(compression, tmp_path):
    """Hundreds of copies of one archive, each damaged elsewhere."""
    whole = zip_of("folder/a.jpg", b"some bytes " * 20, compression=compression)
    archive = tmp_path / "data.zip"
    for place in range(len(whole)):
        archive.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            unpack_zip(archive, tmp_path / "unpacked", "By hand.")
        except UserError as error:
            assert "\n" not in str(error), place
        assert set(os.listdir(tmp_path)) <= {"data.zip", "unpacked"}
        shutil.rmtree(tmp_path / "unpacked", ignore_errors=True)


def test_the_disk_is_not_the_network(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    serve_hymenoptera(server, hymenoptera_zip())
    with monkeypatch.context() as patched, pytest.raises(UserError, match="No space left") as error:
        patched.setattr(zipfile.ZipFile, "extractall", full)
        download_hymenoptera(tmp_path / "data")
    assert error.type is UserError
    assert_nothing_left(tmp_path, tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write") as error:
        download_hymenoptera(tmp_path / "file")
    assert error.type is UserError


# --- manga faces ------------------------------------------------------------


def redirect_kaggle(monkeypatch, port):
    """The connection that asks whether Kaggle answers goes to 127.0.0.1; others as they are."""
    connect = socket.create_connection

    def redirected(address, *given, **named):
        if address == ("api.kaggle.com", 443):
            assert named["timeout"] < 15
            address = ("127.0.0.1", port)
        return connect(address, *given, **named)

    monkeypatch.setattr(socket, "create_connection", redirected)


@pytest.fixture
def kaggle(server, tmp_path_factory, monkeypatch):
    """The stand-in as the real kagglehub meets it, without the user's credentials or cache."""
    pytest.importorskip("kagglehub")
    from kagglesdk import kaggle_env

    for name in list(os.environ):
        if name.startswith("KAGGLE"):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(home))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(home / "the-users-cache"))
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, server.url)
    redirect_kaggle(monkeypatch, server.server_port)
    server.home = home
    return server


def serve_manga(server, body, *, cut=0, hang=0, content_type="application/zip"):
    md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
    headers = {
        "Content-Type": content_type,
        "Accept-Ranges": "bytes",
        "X-Goog-Hash": f"crc32c=AAAAAA==, md5={md5}",
    }
    headers["Content-Length"] = str(len(body))
    server.routes[API_PATH] = (302, {"Location": f"{server.url}/storage/archive.zip"}, b"", 0)
    server.routes["/storage/archive.zip"] = (200, headers, body[: len(body) - cut], hang)


@pytest.mark.parametrize("top", ["", "manga/", "a/b/c/"])
def test_manga_faces_come_down_whole(kaggle, tmp_path, top):
    extra = [(f"__MACOSX/{top}{name}/._000.jpg", "x") for name in MANGA_FACE_COUNTS] + [
        (f"{top}sad/.DS_Store", "x")
    ]
    serve_manga(kaggle, zip_bytes(MANGA_FACE_COUNTS, top=top, extra=extra))
    environment = dict(os.environ)
    target = download_manga_faces(tmp_path / "data")
    assert target == tmp_path / "data" / "manga_facial_expressions"
    assert {
        name: len(list((target / name).glob("[!.]*"))) for name in MANGA_FACE_COUNTS
    } == MANGA_FACE_COUNTS
    assert os.listdir(tmp_path / "data") == ["manga_facial_expressions"]

    assert dict(os.environ) == environment
    assert not list(kaggle.home.iterdir())
    (call, archive) = kaggle.asked
    assert (call[:2], archive[:2]) == (("POST", API_PATH), ("GET", "/storage/archive.zip"))
    asked = json.loads(call[2])
    expected = {
        "ownerSlug": "mertkkl",
        "datasetSlug": "manga-facial-expressions",
        "datasetVersionNumber": 1,
    }
    assert {name: asked.get(name) for name in expected} == expected


def test_manga_wrong_counts(kaggle, tmp_path):
    serve_manga(kaggle, zip_bytes(MANGA_FACE_COUNTS | {"shock": 101}))
    with pytest.raises(UserError) as error:
        download_manga_faces(tmp_path / "data")
    assert error.type is UserError
    assert_helpful(error, "shock 102", "shock 101", download.MANGA_FACE_URL)
    assert_nothing_left(tmp_path, tmp_path / "data")


def test_manga_other_content(kaggle, tmp_path):
    serve_manga(kaggle, zip_bytes({"cats": 2, "angry": 53}))
    with pytest.raises(UserError, match="found angry|found no images|found .*cats 2") as error:
        download_manga_faces(tmp_path / "data")
    assert error.type is UserError
    assert_nothing_left(tmp_path, tmp_path / "data")


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_kaggle_refuses(kaggle, tmp_path, status):
    body = json.dumps({"code": status, "message": "as the service says"}).encode()
    kaggle.routes[API_PATH] = (status, {"Content-Type": "application/json"}, body, 0)
    environment = dict(os.environ)
    with pytest.raises(DownloadError) as error:
        download_manga_faces(tmp_path / "data")
    assert_helpful(error, download.MANGA_FACE_URL, tmp_path / "data/manga_facial_expressions")
    assert "permission" in str(error.value) or status not in (401, 403)
    assert dict(os.environ) == environment
    assert_nothing_left(tmp_path, tmp_path / "data")


def test_kaggle_breaks_off_then_delivers(kaggle, tmp_path):
    body = zip_bytes(MANGA_FACE_COUNTS)
    serve_manga(kaggle, body, cut=1000)
    with pytest.raises(DownloadError) as error:
        download_manga_faces(tmp_path / "data")
    assert_helpful(error)
    assert_nothing_left(tmp_path, tmp_path / "data")
    serve_manga(kaggle, body)
    assert file_counts(download_manga_faces(tmp_path / "data")) == MANGA_FACE_COUNTS


def test_kaggle_absent(kaggle, tmp_path, monkeypatch):
    def refuse(address, **_):
        raise ConnectionRefusedError(111, f"Connection to {address[0]} refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(DownloadError, match="api.kaggle.com refused") as error:
        download_manga_faces(tmp_path / "data")
    assert_helpful(error)
    assert_nothing_left(tmp_path, tmp_path / "data")
    assert not kaggle.asked


@pytest.mark.parametrize("damage", ["md5", "not an archive"])
def test_kaggle_archive_damaged(kaggle, tmp_path, damage):
    body = zip_bytes(MANGA_FACE_COUNTS) if damage == "md5" else b"<html>please log in</html>"
    serve_manga(kaggle, body)
    if damage == "md5":
        status, headers, _, hang = kaggle.routes["/storage/archive.zip"]
        kaggle.routes["/storage/archive.zip"] = (status, headers, body[:-1] + b"x", hang)
    with pytest.raises(DownloadError) as error:
        download_manga_faces(tmp_path / "data")
    assert_helpful(error)
    assert_nothing_left(tmp_path, tmp_path / "data")


def test_manga_interrupted(kaggle, tmp_path, monkeypatch):
    """By Ctrl-C, which reaches the thread that waits, not the one that downloads."""
    over = threading.Event()

    def interrupt(*_):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        over.wait(10)
        raise OSError("too late")

    serve_manga(kaggle, zip_bytes(MANGA_FACE_COUNTS))
    environment = dict(os.environ)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(zipfile.ZipFile, "extractall", interrupt)
        download_manga_faces(tmp_path / "data")
    assert dict(os.environ) == environment
    assert_nothing_left(tmp_path, tmp_path / "data")
    over.set()
    assert file_counts(download_manga_faces(tmp_path / "data")) == MANGA_FACE_COUNTS


def test_kaggle_that_trickles_is_given_up(kaggle):
    body = zip_bytes(MANGA_FACE_COUNTS)
    serve_manga(kaggle, body, cut=1000, hang=5)
    began = time.monotonic()
    with pytest.raises(DataError, match="TimeoutError"):
        fetch_from_kaggle(download.MANGA_FACE_HANDLE, "By hand", seconds=0.5)
    assert time.monotonic() - began < 4


def test_kaggle_and_a_full_disk(kaggle, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    serve_manga(kaggle, zip_bytes(MANGA_FACE_COUNTS))
    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    with pytest.raises(UserError, match="No space left"):
        download_manga_faces(tmp_path / "data")
    assert_nothing_left(tmp_path, tmp_path / "data")


def test_kagglehub_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(UserError, match="pip install kagglehub") as error:
        download_manga_faces(tmp_path / "data")
    assert error.type is UserError
    assert_helpful(error)
    assert_nothing_left(tmp_path, tmp_path / "data")


# --- what a notebook fetches with ---------------------------------------------


def test_a_notebook_has_kaggles_folder_where_kagglehub_keeps_it(kaggle):
    serve_manga(kaggle, zip_bytes(MANGA_FACE_COUNTS))
    folder = fetch_from_kaggle(download.MANGA_FACE_HANDLE, "By hand: unpack it")
    assert kaggle.home / "the-users-cache" in folder.parents
    assert file_counts(folder) == MANGA_FACE_COUNTS


def test_what_kagglehub_keeps_is_usable_without_the_network(kaggle, monkeypatch):
    serve_manga(kaggle, zip_bytes(MANGA_FACE_COUNTS))
    folder = fetch_from_kaggle(download.MANGA_FACE_HANDLE, "By hand: unpack it")

    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(socket.socket, "connect", unreachable)
    asked = len(kaggle.asked)
    assert fetch_from_kaggle(download.MANGA_FACE_HANDLE, "By hand: unpack it") == folder
    assert len(kaggle.asked) == asked


@pytest.mark.parametrize("status", [403, 500])
def test_a_refusal_of_kaggle_is_one_error_with_the_advice(kaggle, status):
    kaggle.routes[API_PATH] = (status, {"Content-Type": "application/json"}, b"{}", 0)
    with pytest.raises(DataError, match="^cannot fetch a/b from Kaggle: .*. By hand: x$") as error:
        fetch_from_kaggle("a/b", "By hand: x")
    assert "\n" not in str(error.value)


def test_without_kagglehub_the_advice_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(DataError, match="cannot fetch a/b from Kaggle: .*kagglehub.*By hand: x$"):
        fetch_from_kaggle("a/b", "By hand: x")


def test_a_notebooks_archive_comes_down_whole(server, tmp_path):
    serve_hymenoptera(server, hymenoptera_zip(compression=zipfile.ZIP_DEFLATED))
    target = tmp_path / "data" / "hymenoptera_data"
    assert fetch_zip(download.HYMENOPTERA_URL, target) == target
    assert file_counts(target) == HYMENOPTERA_COUNTS
    assert (target / "val/bees/007.jpg").read_text() == "image val/bees 7"
    assert os.listdir(tmp_path / "data") == ["hymenoptera_data"]


def damaged(kind):
    """The ants and bees as they come down when something has gone wrong."""
    whole = hymenoptera_zip(compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        last = archive.infolist()[-1]
    start = last.header_offset + 30 + len(last.filename)  # of its deflated bytes
    if kind == "deflated bytes":
        return whole[:start] + b"\xff" * last.compress_size + whole[start + last.compress_size :]
    if kind == "crc":
        stored = hymenoptera_zip()
        return stored.replace(b"image val/bees 8\x50", b"image val/bees 9\x50", 1)
    if kind == "encrypted":
        flags = whole.rindex(b"PK\1\2") + 8  # of the last member, in the directory at the end
        return whole[:flags] + b"\1" + whole[flags + 1 :]
    return {
        "cut": whole[: len(whole) // 2],
        "no zip": b"<html>please log in to this network</html>",
        "empty": b"",
        "another folder": zip_bytes(HYMENOPTERA_COUNTS, top="other/"),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["deflated bytes", "crc", "encrypted", "cut", "no zip", "empty", "another folder"]
)
def test_a_notebooks_archive_that_is_damaged_leaves_nothing(server, tmp_path, kind):
    body = damaged(kind)
    assert body != hymenoptera_zip()
    serve_hymenoptera(server, body)
    target = tmp_path / "data" / "hymenoptera_data"
    with pytest.raises(DataError) as error:
        fetch_zip(download.HYMENOPTERA_URL, target)
    text = str(error.value)
    assert text.startswith(f"cannot fetch {download.HYMENOPTERA_URL} (") and "\n" not in text
    assert text.endswith(f"): unpack it as {target}")
    assert_nothing_left(tmp_path, tmp_path / "data")
    serve_hymenoptera(server, hymenoptera_zip())
    assert file_counts(fetch_zip(download.HYMENOPTERA_URL, target)) == HYMENOPTERA_COUNTS


def test_a_body_that_ends_too_early_is_not_taken_for_whole(server, tmp_path):
    body = hymenoptera_zip()
    serve_hymenoptera(server, body[:-1000], headers={"Content-Length": str(len(body))})
    with pytest.raises(DataError, match="cannot fetch"):
        fetch_zip(download.HYMENOPTERA_URL, tmp_path / "hymenoptera_data")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_notebooks_archive_that_is_refused(server, tmp_path, status):
    serve_hymenoptera(server, b"no", status=status)
    with pytest.raises(DataError, match=f"HTTPError {status}.*unpack it as"):
        fetch_zip(download.HYMENOPTERA_URL, tmp_path / "hymenoptera_data")
    assert not list(tmp_path.iterdir())


def test_no_answer_at_all(server, tmp_path, monkeypatch):
    target = tmp_path / "hymenoptera_data"
    with pytest.raises(DataError, match="refused.*unpack it as"):
        fetch_zip("http://127.0.0.1:9/hymenoptera_data.zip", target)

    def silent(url, *, timeout):
        assert timeout < 15
        raise TimeoutError("timed out")

    monkeypatch.setattr(download, "urlopen", silent)
    with pytest.raises(DataError, match="timed out"):
        fetch_zip(download.HYMENOPTERA_URL, target)
    assert not list(tmp_path.iterdir())


def test_members_outside_the_folder_are_not_written(server, tmp_path):
    extra = [(name, "x") for name in ("../escaped.jpg", "/escaped.jpg", "a/../../escaped.jpg")]
    serve_hymenoptera(server, hymenoptera_zip(extra=extra))
    target = tmp_path / "data" / "hymenoptera_data"
    assert file_counts(fetch_zip(download.HYMENOPTERA_URL, target)) == HYMENOPTERA_COUNTS
    assert not list(tmp_path.rglob("escaped.jpg")) and not Path("/escaped.jpg").exists()
    assert os.listdir(tmp_path / "data") == ["hymenoptera_data"]


def test_an_interrupted_unpacking_leaves_nothing(server, tmp_path, monkeypatch):
    def interrupt(archive, folder):
        Path(folder, "hymenoptera_data").mkdir()
        raise KeyboardInterrupt

    serve_hymenoptera(server, hymenoptera_zip())
    monkeypatch.setattr(zipfile.ZipFile, "extractall", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_zip(download.HYMENOPTERA_URL, tmp_path / "hymenoptera_data")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_notebook_left_is_swept_after_a_day(tmp_path):
    left = tmp_path / ".transferlab-nb-0-abc_1234"
    left.mkdir()
    sweep_scratch(tmp_path)
    assert left.is_dir()
    os.utime(left, (1, 1))
    sweep_scratch(tmp_path)
    assert not left.exists()


def test_a_place_that_cannot_be_written(server, tmp_path):
    serve_hymenoptera(server, hymenoptera_zip())
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot fetch .*FileExists.*unpack it as"):
        fetch_zip(download.HYMENOPTERA_URL, tmp_path / "file" / "hymenoptera_data")
