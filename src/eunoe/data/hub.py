"""Which commit of a Hugging Face dataset is read: its name alone does not say what text it holds."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from functools import cache
from pathlib import Path

from eunoe import stop
from eunoe.foreign import reading, visible


@cache
def commit(name: str, revision: str | None = None) -> str | None:
    """The commit that ``revision`` (a commit, branch or tag; default ``main``) of a dataset stands for; asked once a process.

    The hub is asked; where it does not answer, the hub's cache on this machine. For a folder of this machine, which the
    library takes before the hub, it is a hash of its files. None where it cannot be known (no network, nothing cached,
    and no commit given): then a later run may read other rows without notice. Give a commit to be sure.
    """
    from huggingface_hub import HfApi, constants  # half a second of import that only hub names need
    from huggingface_hub.file_download import repo_folder_name

    if Path(name).is_dir():
        return _folder_hash(Path(name))
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    with suppress(Exception):  # no network, no such dataset, no access: reading the dataset says which
        sha = HfApi().dataset_info(name, revision=revision, timeout=20).sha
        if sha is not None:
            return str(sha)
    known = (
        Path(constants.HF_HUB_CACHE)
        / repo_folder_name(repo_id=name, repo_type="dataset")
        / "refs"
        / (revision or "main")
    )
    try:
        return known.read_text(encoding="ascii").strip() or revision
    except (OSError, ValueError):
        return revision


def _folder_hash(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        with reading(path), open(path, "rb") as file:
            own = stop.digest(file, f"reading {visible(path)}")
        total.update(os.fsencode(path.relative_to(folder)) + b"\0" + bytes.fromhex(own))
    return total.hexdigest()
