"""Models of the hub: an id to a local folder, fetched once; whatever goes wrong is one line that says what to do.

An id is ``org/name``, ``name``, or either with a branch, tag or commit behind it: ``org/name@revision``.
"""

import re
from pathlib import Path
from typing import Any

from shoal.words.progress import MEGABYTE, listener
from shoal.words.reading import reason_of, shortened

HUB_ID = re.compile(r"(?=.{1,96}$)[A-Za-z0-9][\w.\-]*(?:/[A-Za-z0-9][\w.\-]*)?")
REVISION = re.compile(r"[\w][\w.\-/]{0,200}")
FETCHED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
LOG_IN = "log in with `hf auth login` where you have access"


def is_hub_id(text: str) -> bool:
    """Whether a name has the form of a hub id, a revision behind it or not."""
    name, at, revision = text.partition("@")
    return (
        HUB_ID.fullmatch(name) is not None
        and not re.search(r"--|\.\.", name)
        and (not at or REVISION.fullmatch(revision) is not None)
    )


def fetched(text: str, *, trust_remote_code: bool = False) -> Path:
    """The folder of a hub id in the cache, fetched or completed where it is not there.

    Args:
        trust_remote_code: fetch the code that comes with the model, too.
    Raises:
        ValueError: gated, private, missing, another name or revision, no network and not in the cache, a damaged download.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = text.partition("@")
    wanted = [*FETCHED, *(["*.py"] if trust_remote_code else [])]
    try:
        bars = told_bars(f"fetch {name}")
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted, tqdm_class=bars))
    except Exception as error:  # The client raises errors of its own, of its network library, and of the disk.
        if isinstance(error, OSError) and error.errno in (28, 122):  # The command says of a full disk what to do.
            raise
        raise ValueError(why_not(error, name, revision or "main")) from None


def told_bars(what: str) -> type[Any]:
    """A class of progress bars for the hub's client that draw nothing: that of the bytes on disk is told in megabytes."""
    from tqdm import tqdm

    told = listener()  # The client's threads move the bars.

    class Told(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counts_bytes = options.get("unit") == "B" and not str(options.get("desc", "")).startswith("Downloading")
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self._counts_bytes and self.total:
                told(f"{what} (MB)", int(self.n) // MEGABYTE, max(1, -(-int(self.total) // MEGABYTE)))
            return None

    return Told


def why_not(error: Exception, name: str, revision: str) -> str:
    """One line for an error of the hub's client."""
    from huggingface_hub import constants

    chain = [error, *([error.__cause__] if error.__cause__ is not None else [])]  # The client wraps what the hub answered.
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    statuses = [getattr(getattr(one, "response", None), "status_code", None) for one in chain]
    status = next((one for one in statuses if one is not None), None)
    if "GatedRepoError" in kinds:
        return f"{name!r} is gated on the hub: ask for access on its page, then {LOG_IN}"
    if "RevisionNotFoundError" in kinds:
        return f"{name!r} has no revision {revision!r} on the hub; give a branch, tag or commit behind the @"
    if "RepositoryNotFoundError" in kinds:
        return f"{name!r} is no folder here, and on the hub it does not exist or is private; check the spelling, or {LOG_IN}"
    if status in (401, 403):
        return f"the hub refuses access to {name!r} (HTTP {status}); {LOG_IN}"
    if status is not None:
        return f"the hub answers HTTP {status} for {name!r}; try again later, or download it and pass the folder"
    if constants.HF_HUB_OFFLINE:
        return (
            f"{name!r} is no folder here, and as a hub id not in the cache; HF_HUB_OFFLINE forbids to fetch it: unset it once"
        )
    if "LocalEntryNotFoundError" in kinds or "ConnectError" in kinds:
        return (
            f"{name!r} is no folder here and not in the cache, and the hub cannot be reached; check network and spelling, or "
            "pass a folder"
        )
    reason = shortened(re.sub(r"https?://\S+", "the hub", reason_of(error)), 160)
    return f"{name!r} was not fetched whole ({reason}); run the same command again: what is there is kept"
