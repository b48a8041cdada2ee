"""What a result depends on besides its configuration: code, versions, machine, weights and data, as short hashes."""

from __future__ import annotations

import hashlib
import inspect
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from tokenprune.core.sample import Sample
from tokenprune.version import __version__

PACKAGE = Path(__file__).parents[1]
# A result depends on these folders, and on nothing else of the package.
DECIDING = ("core", "functional", "conditioning", "pruners", "towers", "adapters", "engine", "tasks")
REGISTERED = re.compile(rb"^@register_(pruner|adapter|task)\(", re.MULTILINE)  # in a file of one method, family or task
SAMPLED = 64  # weights of each tensor that enter the fingerprint of a loaded model
WHOLE = 1 << 24  # bytes of a file up to which all of it enters that of a checkpoint; of a larger one, 65,536
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth"}
SETTINGS = {".json", ".jinja", ".model", ".txt"}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a result comes from.

    Attributes:
        code: hash of the source that decides about the result.
        git: commit that the package's source is checked out at, with ``+changes`` if it was edited; None outside git.
        versions: of the libraries that decide about numbers.
        device: the processor or GPU that computed.
        model: fingerprint of the weights.
        data: hash of questions, answers, and the pictures and videos as they are stored.
    """

    code: str
    git: str | None
    versions: dict[str, str]
    device: str
    model: str
    data: str


def digest(*parts: bytes | str) -> str:
    """A hash of several parts, twelve hexadecimal digits; where one part ends matters, too."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        total.update(len(content).to_bytes(8, "big") + content)
    return total.hexdigest()[:12]


def code_hash(*classes: type) -> str:
    """Hash of the source that decides about a result.

    That is what ``DECIDING`` names, without other pruners, tasks and adapters than those that were used: a new method
    does not make the results of the old ones stale.

    Args:
        *classes: the pruner's, the task's and the adapter's class; from outside the package or inside, their files and
            those of their base classes count.
    """
    used = {Path(found) for cls in classes for base in cls.__mro__ if (found := _source_file(base))}
    folders = {file.parent for file in used if file.parent.parent == PACKAGE / "pruners"}
    parts = {file for folder in folders for file in folder.glob("*.py")}
    shared = {file for folder in DECIDING for file in (PACKAGE / folder).rglob("*.py") if not _of_one(file)}
    return digest(*(file.read_bytes() for file in sorted(shared | used | parts)))


def _of_one(file: Path) -> bool:
    """Whether a file belongs to one pruner, family or task, as its own file or as a part in its folder."""
    return file.parent.parent == PACKAGE / "pruners" or bool(REGISTERED.search(file.read_bytes()))


def _source_file(cls: type) -> str | None:
    try:
        return inspect.getsourcefile(cls)
    except (TypeError, OSError):  # defined in a notebook or a shell
        return None


def git_state() -> str | None:
    """Commit of the package's source; None if it is not under version control."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", "version.py") is None:  # perhaps installed below somebody else's repository
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain", "--", ".") else commit


def versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries that decide about numbers."""
    libraries = {name: version(name) for name in ("torch", "transformers", "numpy", "pillow")}
    return {"python": platform.python_version(), "tokenprune": __version__, **libraries}


def device_name(device: torch.device) -> str:
    """Name of a device: of the GPU, or the processor's architecture and the number of threads torch uses."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def processor() -> str:
    """The name of the CPU as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def model_hash(model: torch.nn.Module) -> str:
    """Fingerprint of weights: each tensor's name, shape, type and evenly spaced values; quick at any size."""

    def parts() -> Iterable[str | bytes]:
        for name, tensor in sorted(model.state_dict().items()):
            flat = tensor.detach().flatten()
            at = torch.linspace(0, max(0, len(flat) - 1), min(SAMPLED, len(flat)), device=flat.device).long()
            yield f"{name} {tuple(tensor.shape)} {tensor.dtype}"
            yield flat[at].double().cpu().numpy().tobytes()

    return digest(*parts())


def checkpoint_hash(path: str, commit: str | None) -> str:
    """Fingerprint of a checkpoint before it loads: its files, weights by evenly spaced bytes; quick at any size.

    Args:
        path: its folder, or a hub id.
        commit: of the hub's repository; stands for the files where there is no folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        return digest(path, commit or "")
    files = sorted(f for f in folder.rglob("*") if f.suffix in WEIGHTS | SETTINGS and f.is_file())

    def parts() -> Iterable[str | bytes]:
        for file in files:
            yield f"{file.relative_to(folder)} {file.stat().st_size}"
            yield _some_bytes(file) if file.stat().st_size > WHOLE else file.read_bytes()

    return digest(*parts())


def _some_bytes(file: Path) -> bytes:
    data = np.memmap(file, mode="r")
    return data[np.linspace(0, len(data) - 1, WHOLE // 256).astype(np.int64)].tobytes()


def data_hash(samples: Iterable[Sample]) -> str:
    """Hash of questions: what is asked, what is right and the encoded bytes of what is shown; nothing is decoded."""

    def parts() -> Iterable[str]:
        for sample in samples:
            asked = (sample.question, sample.answer, sample.kind, sample.unit, sample.boxes, sample.other_question)
            yield repr((sample.id, *asked, sample.earlier))
            yield sample.turn.digest

    return digest(*parts())
