"""Uploads go to a hub in one commit, private unless said otherwise; a dry run sends nothing; the token is in no message."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from gguf_world import tiny_llama

from shoal.export.push import planned, push

TOKEN = "hf_" + "s3cret" * 6


class FakeHub(BaseHTTPRequestHandler):
    """As much of the hub as an upload asks for: repositories, which files go how, commits."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        if self.path == "/api/repos/create":
            stated = json.loads(body)
            name = f"{stated.get('organization') or 'me'}/{stated['name']}"
            if self.server.refuses:
                self.answer(403, {"error": f"Forbidden for token {TOKEN}"})
            elif name in self.server.repositories:
                self.answer(409, {"error": "You already created this model repo", "url": f"{self.server.address}/{name}"})
            else:
                self.server.repositories[name] = {"private": is_private(stated), "files": {}}
                self.answer(200, {"url": f"{self.server.address}/{name}", "name": name})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self.answer(200, {"files": files})
        elif "/commit/" in self.path:
            name = "/".join(self.path.split("/")[3:5])
            for line in body.splitlines():
                one = json.loads(line)
                if one["key"] == "file":
                    self.server.repositories[name]["files"][one["value"]["path"]] = base64.b64decode(one["value"]["content"])
            address = f"{self.server.address}/{name}/commit/abc"
            self.answer(200, {"commitUrl": address, "commitOid": "abc", "pullRequestUrl": None, "success": True})
        else:
            self.answer(404, {"error": "no such thing"})

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization"), b""))
        name = "/".join(self.path.split("?")[0].split("/")[3:5])
        private = self.server.repositories.get(name, {}).get("private")
        self.answer(200, {"sha": "abc", "id": name, "siblings": [], "private": private})

    def answer(self, code, content):
        raw = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *words):
        pass


def is_private(stated):
    """The client says it in one of two ways, by version."""
    return bool(stated.get("private")) or stated.get("visibility") == "private"


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.asked, server.repositories, server.refuses = [], {}, False
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def student(tmp_path):
    folder = tmp_path / "student"
    tiny_llama(2).save_pretrained(folder)
    (folder / "README.md").write_text("card of the student")
    return folder


def test_a_folder_goes_up_whole_and_private(hub, student):
    address = push(planned(student, "me/student"), endpoint=hub.address)
    stored = hub.repositories["me/student"]
    assert stored["private"] is True and address.endswith("/me/student/commit/abc")
    assert stored["files"] == {path.name: path.read_bytes() for path in student.iterdir()}
    assert hub.asked and [one for one in hub.asked if one[1] != f"Bearer {TOKEN}"] == []


def test_named_chat_templates_go_up_where_they_are_found(student):
    named = student / "additional_chat_templates" / "tool_use.jinja"
    named.parent.mkdir()
    named.write_text("{{ tools }}")
    (student / ".hidden").mkdir()
    assert dict(planned(student, "me/student").files)["additional_chat_templates/tool_use.jinja"] == named


def test_a_file_brings_the_card(hub, student, shoal):
    code, out, err = shoal("export", "gguf", student, "--out", "s.gguf", "--push", "me/student", "--public", "--json")
    stored = hub.repositories["me/student"]
    assert code == 0 and json.loads(out)["push"]["sent"] is True and stored["private"] is False
    assert set(stored["files"]) == {"s.gguf", "README.md"} and stored["files"]["README.md"] == b"card of the student"
    assert TOKEN not in out + err


def test_a_dry_run_sends_nothing(hub, student, shoal):
    code, out, err = shoal("export", "gguf", student, "--out", "s.gguf", "--push", "me/student", "--dry-run")
    assert code == 0 and "would send 2 files" in out and "private repository me/student" in out
    assert hub.asked == [] and TOKEN not in out + err


def test_a_repository_that_exists_is_not_overwritten(hub, student):
    push(planned(student, "me/student"), endpoint=hub.address)
    with pytest.raises(ValueError, match="me/student was not pushed.*--overwrite"):
        push(planned(student, "me/student"), endpoint=hub.address)
    push(planned(student, "me/student"), endpoint=hub.address, overwrite=True)


@pytest.mark.parametrize("was_public", [True, False])
def test_nothing_goes_into_a_repository_that_others_see_otherwise_than_was_said(hub, student, was_public):
    push(planned(student, "me/student", public=was_public), endpoint=hub.address)
    (student / "README.md").write_text("a new card")
    what = "is public; add --public" if was_public else "is private; leave out --public"
    with pytest.raises(ValueError, match=f"^me/student {what}, or give another name"):
        push(planned(student, "me/student", public=not was_public), endpoint=hub.address, overwrite=True)
    stored = hub.repositories["me/student"]["files"]
    assert stored["README.md"] == b"card of the student"
    push(planned(student, "me/student", public=was_public), endpoint=hub.address, overwrite=True)
    assert stored["README.md"] == b"a new card"


def test_a_refusal_is_one_line_without_the_token(hub, student):
    hub.refuses = True
    with pytest.raises(ValueError, match="was not pushed") as caught:
        push(planned(student, "me/student"), endpoint=hub.address)
    assert TOKEN not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--push", "student"), "needs an owner: --push OWNER/student"),
        (("--push", "me/a b"), "me/a b"),
        (("--public",), "belong to --push"),
    ],
)
def test_wrong_names_are_one_line(words, message, student, shoal):
    code, out, err = shoal("export", "gguf", student, "--out", "s.gguf", *words)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1
    assert not Path("s.gguf").exists(), "a name is looked at before the work"
