"""What was written, on the hub: files and card in one commit, into a new private repository; or only said, as a dry run.

The token is the hub client's own (``hf auth login`` or ``HF_TOKEN``); it is never asked for, printed or written here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.words.reading import guarded

CARD = "README.md"


@dataclass(frozen=True)
class Push:
    """An upload that is planned.

    Attributes:
        name: ``owner/name`` on the hub.
        files: name in the repository and file here.
        is_private: whether only the owner sees it.
    """

    name: str
    files: tuple[tuple[str, Path], ...]
    is_private: bool

    @property
    def n_bytes(self) -> int:
        return sum(path.stat().st_size for _, path in self.files)

    def __str__(self) -> str:
        kind = "private" if self.is_private else "public"
        return f"{len(self.files)} files, {self.n_bytes:,} bytes, to the {kind} repository {self.name}"


def check_name(name: str) -> None:
    """Raises ValueError for a name that the hub does not allow."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"--push {name!r}: {' '.join(str(error).split())}") from None
    if "/" not in name:
        raise ValueError(f"--push {name!r} needs an owner: --push OWNER/{name}")


def planned(written: Path, name: str, *, card: Path | None = None, public: bool = False) -> Push:
    """The upload of a folder, or of a file with a card beside it.

    Args:
        card: README.md of the student; a folder that has one of its own brings that.
    Raises:
        ValueError: a name that the hub does not allow; nothing to upload.
    """
    from shoal.checkpoint.new_folder import files_of

    check_name(name)
    if written.is_dir():
        files = [(path.relative_to(written).as_posix(), path) for path in files_of(written)]
    else:
        files = [(written.name, written)]
    if card is not None and card.is_file() and all(known != CARD for known, _ in files):
        files.append((CARD, card))
    if not files:
        raise ValueError(f"{written} holds no files; there is nothing to push")
    return Push(name, tuple(files), not public)


def push(plan: Push, *, endpoint: str | None = None, overwrite: bool = False) -> str:
    """Make the repository and upload the files in one commit.

    Args:
        endpoint: of the hub; by default the client's.
        overwrite: allow a repository that is there already.
    Returns: the address of the commit.
    Raises:
        ValueError: in one line and without the token: no token, not allowed, the repository exists, or exists and is public
            where the plan says private or the reverse, the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    api = HfApi(endpoint=endpoint)
    failed = f"{plan.name} was not pushed"
    operations: list[Any] = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in plan.files]
    try:
        with guarded(failed):  # The HTTP library of the client, and its errors, differ by version.
            api.create_repo(plan.name, private=plan.is_private, exist_ok=overwrite)
            # A repository that was there keeps its own visibility, whatever create_repo asks for.
            is_private = bool(api.repo_info(plan.name).private) if overwrite else plan.is_private
        _check_visibility(plan, is_private=is_private)
        with guarded(failed):
            done = api.create_commit(plan.name, operations=operations, commit_message="Student written by Shoal")
    except ValueError as error:
        said, token = str(error), get_token()
        said = said.replace(token, "***") if token else said
        raise ValueError(f"{said}; --overwrite pushes into one that exists" if "409" in said else said) from None
    return str(done.commit_url)


def _check_visibility(plan: Push, *, is_private: bool) -> None:
    """Raises ValueError where the repository is public and the upload is planned as private, or the reverse."""
    if is_private != plan.is_private:
        kind, way = ("private", "leave out --public") if is_private else ("public", "add --public")
        raise ValueError(f"{plan.name} is {kind}; {way}, or give another name")
