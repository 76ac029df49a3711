"""A hub id is fetched once, goes on where a download was cut, and whatever can go wrong is one line that says what to do."""

import os
import subprocess
import sys

import pytest
from fake_hub import COMMIT, Hub, serving
from families import tiny_model

from shoal.engine.open import open_model
from shoal.engine.source import resolve_source


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "model"
    tiny_model("llama", n_layers=2).save_pretrained(folder)
    (folder / "modeling_x.py").write_text("raise SystemExit")
    return folder


@pytest.fixture
def hub(saved, tmp_path, monkeypatch):
    """A hub that is reached through the client of the library, with an empty cache."""
    from huggingface_hub import constants

    with serving(Hub(saved)) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # The client waits so long between its tries.
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        yield served


def refusal(name):
    with pytest.raises(ValueError) as caught:
        resolve_source(name)
    message = str(caught.value)
    assert "\n" not in message and "127.0.0.1" not in message, message
    return message


def test_a_model_of_the_hub_opens_and_code_is_not_fetched_without_the_flag(hub, saved):
    opened = open_model("org/name")
    assert opened.model.config.num_hidden_layers == 2 and opened.name == "org/name"
    assert not (opened.path / "modeling_x.py").exists()
    assert (resolve_source("org/name", trust_remote_code=True) / "modeling_x.py").exists()


def test_a_download_that_was_cut_is_completed(hub):
    hub.drop_after = 1000
    assert open_model("org/name").model.config.num_hidden_layers == 2
    assert sum(path.endswith(".safetensors") and verb == "GET" for verb, path, _ in hub.requests) == 2


REFUSALS = {
    "gated": ((403, "GatedRepo"), "is gated", "ask for access"),
    "gated, not logged in": ((401, "GatedRepo"), "is gated", "log in"),
    "private": ((401, "RepoNotFound"), "does not exist or is private", "log in"),
    "forbidden": ((403, ""), "refuses access", "403"),
    "overloaded": ((503, ""), "503", "later"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_hub_refuses(hub, name):
    hub.refuse, *said = REFUSALS[name]
    message = refusal("org/name")
    assert all(word in message for word in said), message


def test_a_name_that_is_not_there(hub):
    assert "does not exist or is private" in refusal("org/nmae")


def test_a_model_that_was_renamed_is_found(hub):
    hub.renamed = "org/old"
    assert (resolve_source("org/old") / "config.json").exists()


def test_a_revision_is_named_behind_the_id(hub):
    hub.revision = "v2"
    assert (resolve_source("org/name@v2") / "config.json").exists()
    assert resolve_source(f"org/name@{COMMIT}") == resolve_source("org/name@v2")
    assert "has no revision 'v9'" in refusal("org/name@v9")


def test_offline_what_is_in_the_cache_opens_and_what_is_not_says_so(hub, monkeypatch):
    from huggingface_hub import constants

    there = resolve_source("org/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_source("org/name") == there
    assert "not in the cache" in refusal("org/other")


def test_a_hub_that_cannot_be_reached_is_said_and_the_cache_is_used(hub, monkeypatch):
    from huggingface_hub import constants

    there = resolve_source("org/name")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert resolve_source("org/name") == there
    assert "cannot be reached" in refusal("org/other")


def test_a_file_of_another_size_than_it_claims_is_refused(hub):
    hub.wrong_size = "model.safetensors"
    assert "was not fetched whole" in refusal("org/name")
    hub.wrong_size = None
    assert open_model("org/name").model.config.num_hidden_layers == 2  # The same command goes on when it is given again.


@pytest.mark.parametrize(
    "name", ["org//name", "a/b/c", "org/na me", "-org/x..y", "org/" + "x" * 5000, "org/name@", "@v1", "org/na\0me"]
)
def test_what_is_no_id_never_reaches_the_hub(hub, name):
    refusal(name)
    assert not hub.requests


def test_the_command_says_it_in_one_line_through_the_environment(saved, tmp_path):
    """As a user has it: HF_ENDPOINT, a cache of its own, a process of its own."""
    with serving(Hub(saved)) as hub:
        hub.refuse = (403, "GatedRepo")
        there = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-m", "shoal", "plan", "org/name", "--recipe", "uidl-simple", "--drop", "1", "--out", "run"]
        done = subprocess.run(command, env=there, cwd=tmp_path, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("shoal: ")]
    assert done.returncode == 2 and len(lines) == 1 and "is gated" in lines[0], done.stderr
