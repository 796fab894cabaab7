"""Upload of a trained model with its card to a hub that speaks Hugging Face's protocol (``HF_ENDPOINT`` names another one).

The access token is what ``hf auth login`` stored or ``HF_TOKEN`` holds. It goes to the hub and nowhere else.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fovea import __version__
from fovea.files import write_json
from fovea.report import card

ALLOWED = {".safetensors", ".json", ".jinja", ".txt", ".model", ".md", ".png", ".svg"}
"""Endings of files that a model consists of and that hold no code for Python; LICENSE and NOTICE go as well."""
PART = r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"


class HubError(RuntimeError):
    """The upload did not happen; the message says why and what to do."""


@dataclass(frozen=True)
class Pushed:
    """What went to the hub, or would have.

    Attributes:
      url: of the repository; empty for a dry run.
      commit: the commit that was made; empty for a dry run.
      files: name in the repository -> bytes.
      card: the model card.
    """

    url: str
    commit: str
    files: dict[str, int]
    card: str


def push(
    model: str | Path,
    repo: str,
    *,
    private: bool = False,
    adapter: bool = False,
    license: str = "",
    base: str = "",
    token: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Upload a model with a card written from its run.

    Args:
      model: a run folder (its last checkpoint), a checkpoint of a run, or a model folder.
      repo: OWNER/NAME; made if it is not there.
      private: make the repository private; a public one that is there already is refused.
      adapter: of a model trained with LoRA send the adapters alone; otherwise they are folded into whole weights.
      license: identifier for the card, such as "apache-2.0".
      base: hub id of the base model, for the card and for adapters.
      token: instead of the stored one.
      dry_run: collect the files and write the card, but send nothing.
    Raises:
      HubError: no token, no network, or the hub refused.
      ValueError: a repository name that no hub accepts; a file that may hold code; adapters asked of a model without, or without a base.
      FileNotFoundError: no model there.
    """
    for name in filter(None, (repo, base)):
        check_name(name)
    folder, run, step = locate(Path(model))
    token = "" if dry_run else _token(token)
    with tempfile.TemporaryDirectory() as scratch:
        chosen, base = choose(folder, adapter, base, Path(scratch) / "model")
        files = model_files(chosen)
        if "README.md" not in files:
            files |= _describe(Path(scratch), card.model_card(repo, run, step, license, base, adapter), run)
        text = files["README.md"].read_text(encoding="utf-8")
        sizes = {name: file.stat().st_size for name, file in sorted(files.items())}
        if dry_run:
            return Pushed("", "", sizes, text)
        url, commit = upload(files, repo, private, token)
        return Pushed(url, commit, sizes, text)


def check_name(repo: str) -> None:
    """
    Raises:
      ValueError: `repo` is not OWNER/NAME as the hub spells it.
    """
    if not re.fullmatch(f"{PART}/{PART}", repo) or repo.endswith(".git") or len(repo) > 96:
        raise ValueError(
            f"repository {repo!r}: expected OWNER/NAME of letters, digits, '-', '_' and '.', not beginning or ending with '-' or '.', "
            "without '--' or '..', at most 96 characters"
        )


def locate(path: Path) -> tuple[Path, Path | None, int | None]:
    """(model folder, run folder or None, step or None) of a run, a checkpoint or a model."""
    from fovea.trainer import checkpoint as ckpt

    found = ckpt.find(path) or (ckpt.find(path.parent) if path.name == ckpt.MODEL else None)
    if found is not None:
        run = found.path.parent.parent
        return found.model, run if (run / "metrics.jsonl").is_file() else None, found.step
    if not path.is_dir() or not any(path.glob("*.safetensors")):
        raise FileNotFoundError(f"{path}: found no model; expected a run folder, a checkpoint, or a folder with *.safetensors")
    return path, None, None


def choose(folder: Path, adapter: bool, base: str, scratch: Path) -> tuple[Path, str]:
    """(folder to send, hub id of its base or ""): a model without adapters is sent as it is, one with them as `adapter` says."""
    from fovea.policies.lora import CONFIG, base_of

    named = base_of(folder)
    if named is None:
        if adapter:
            raise ValueError(f"{folder}: has no adapters; expected a model trained with lora.rank > 0, or no --adapter")
        return folder, base
    if not adapter:
        from fovea import api

        api.export(folder, merged=scratch)
        return scratch, base
    base = base or ("" if Path(named).exists() or not re.fullmatch(f"{PART}/{PART}", named) else named)
    if not base:
        raise ValueError(f"{folder / CONFIG}: the adapters belong to {named!r}, which is on no hub; name their base with --base OWNER/NAME")
    shutil.copytree(folder, scratch)
    write_json(scratch / CONFIG, {**json.loads((folder / CONFIG).read_text()), "base_model_name_or_path": base})
    return scratch, base


def model_files(folder: Path) -> dict[str, Path]:
    """Every file of the model by its name in the repository; hidden ones are left out.

    Raises:
      ValueError: a file that is no part of a model, or that lies elsewhere and is only linked to.
    """
    found = {f.relative_to(folder).as_posix(): f for f in sorted(folder.rglob("*")) if f.is_file() or f.is_symlink()}
    files = {name: f for name, f in found.items() if not any(part.startswith(".") for part in name.split("/"))}
    strange = [n for n, f in files.items() if f.suffix.lower() not in ALLOWED and f.name not in ("LICENSE", "NOTICE")]
    if strange:
        raise ValueError(
            f"{folder}: found {', '.join(strange)}; expected a model's files only ({', '.join(sorted(ALLOWED))}, LICENSE, NOTICE): "
            "others can hold code, or were not meant to be published"
        )
    outside = [n for n, f in files.items() if not f.resolve().is_relative_to(folder.resolve())]
    if outside:
        raise ValueError(f"{folder}: {', '.join(outside)} leads to {files[outside[0]].resolve()}; expected files inside the folder")
    return files


def _describe(scratch: Path, text: str, run: Path | None) -> dict[str, Path]:
    """The card and, where there is something to draw and matplotlib to draw it, the curve."""
    files = {"README.md": scratch / "README.md"}
    metric = card.picture_metric(run) if run and importlib.util.find_spec("matplotlib") else None
    if run and metric:
        from fovea.report.plots import curve_png

        files[card.PICTURE] = curve_png(run, scratch / card.PICTURE, metric)
        text = card.with_picture(text)
    files["README.md"].write_text(text, encoding="utf-8")
    return files


def _token(given: str | None) -> str:
    from huggingface_hub import get_token

    token = given or get_token()
    if not token:
        raise HubError("no access token: run `hf auth login`, or set HF_TOKEN to a token with write access")
    return token


def upload(files: Mapping[str, Path], repo: str, private: bool, token: str) -> tuple[str, str]:
    """Make the repository if need be and commit `files` to it; returns its URL and the commit."""
    from huggingface_hub import CommitOperationAdd, HfApi

    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    with _explained(repo, hub.endpoint, token):
        url = hub.create_repo(repo, private=private or None, exist_ok=True)
        if private and not hub.model_info(repo).private:
            raise HubError(f"{repo} is there already and public; nothing was sent. Make it private in its settings, or choose another name")
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()]
        done = hub.create_commit(repo, operations, commit_message=f"Upload by fovea {__version__}")
    return str(url), done.oid


@contextmanager
def _explained(repo: str, endpoint: str, token: str) -> Iterator[None]:
    """Failures of the hub and of the way to it as `HubError`, the token blotted out."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except HubError:
        raise
    except OfflineModeIsEnabled:
        raise HubError("offline mode is on (HF_HUB_OFFLINE); unset it to push") from None
    except Exception as e:
        said = " ".join(str(e).split()).replace(token, "***")
        status = _status(e)
        if status in (401, 403):
            why = f"expected a token with write access to {repo.partition('/')[0]}; `hf auth whoami` shows whose it is"
            raise HubError(f"{endpoint} refused the token for {repo} ({status}): {why}. It said: {said}") from None
        if status is not None:
            raise HubError(f"{endpoint} answered {status} to the upload of {repo}: {said}") from None
        if _is_network(e):
            raise HubError(
                f"{endpoint} was not reached ({type(e).__name__}: {said}); is there a network, is HF_ENDPOINT right? "
                "A hub that does not speak the Xet protocol needs HF_HUB_DISABLE_XET=1"
            ) from None
        raise


def _status(error: BaseException | None) -> int | None:
    """The HTTP status in an error or its causes (uploads in threads wrap theirs)."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__
    return None


def _is_network(error: BaseException | None) -> bool:
    """A failed connection; the hub's client moved from one HTTP library to another, so they are known by the beginning of their name."""
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            return True
        error = error.__cause__
    return False
