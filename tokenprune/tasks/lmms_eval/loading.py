"""Builds a task of lmms-eval, so that nothing of it stays behind and what goes wrong is one sentence."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenprune.core.errors import ConfigError, DataError, TokenPruneError, hint
from tokenprune.tasks.lmms_eval.sources import asks_a_judge

# With these lmms-eval looks for archives of videos on the hub, and starts a process group that torchrun's ranks then
# find taken. Videos must lie where its tasks look for them.
VIDEO_KEYS = frozenset(
    {"video", "cache_dir", "force_download", "force_unzip", "create_link", "local_files_only", "From_YouTube"}
)


def read_config(path: Path) -> dict[str, Any]:
    """A task's configuration, with includes; executes the modules that it names.

    Raises:
        ConfigError: if one of them cannot be executed.
    """
    with plain_errors(f"lmms-eval task file {path}"), _undone():
        import lmms_eval.api.metrics  # noqa: F401  registers mean, exact_match, anls
        from lmms_eval.utils import load_yaml_config

        config: dict[str, Any] = load_yaml_config(str(path), mode="full")
    return config


def check_config(config: Mapping[str, Any], prompts: str, prompt: Mapping[str, Any], unchecked: bool) -> None:
    """Refuse what cannot be run here, before any data loads.

    Args:
        config: of a task.
        prompts: name of one of its sets of prompts.
        prompt: values that replace some of that set.
        unchecked: whether the task is none of the table, so that its scoring is looked through.

    Raises:
        ConfigError: naming what is wrong.
    """
    task, kind = config.get("task"), config.get("output_type") or "generate_until"
    if kind != "generate_until":
        raise ConfigError(f"lmms-eval task {task!r} is of type {kind}; only generate_until can be run")
    given = config.get("generation_kwargs") or {}
    if given.get("do_sample") or float(given.get("temperature") or 0) > 0 or (config.get("repeats") or 1) > 1:
        raise ConfigError(f"lmms-eval task {task!r} draws its answers at random; answers here are greedy")
    sets = {k: v for k, v in (config.get("lmms_eval_specific_kwargs") or {}).items() if isinstance(v, Mapping)}
    if prompts not in {"default", *sets}:
        raise ConfigError(f"lmms-eval task {task!r} has no prompts {prompts!r}; {hint(prompts, {'default', *sets})}")
    keys = {key for each in sets.values() for key in each}
    for key in prompt:
        if key not in keys:
            raise ConfigError(f"task.prompt of {task!r} has no key {key!r}; {hint(key, keys)}")
    scoring = [config.get("process_results"), *(m.get("aggregation") for m in config.get("metric_list") or ())]
    for function in filter(callable, scoring) if unchecked else ():
        if found := asks_a_judge(function):
            raise ConfigError(f"lmms-eval task {task!r} may ask a judge or a server for scores: {found}")


def make_task(config: dict[str, Any], prompts: str, prompt: Mapping[str, Any], root: str | None) -> Any:
    """Make lmms-eval's task of a configuration, and load its data set.

    Args:
        config: as read; used up.
        prompts: name of a set of prompts.
        prompt: replaces single values of that set.
        root: folder of data sets by their hub ids; None for the hub and its cache.

    Raises:
        ConfigError: if a package is missing.
        DataError: if the data set is, or cannot be read.
    """
    data = str(config.get("dataset_path"))
    if root is not None and not (Path(root) / data).is_dir() and "/" in data:
        raise DataError(f"task.root {root!r} has no folder {data!r}, which lmms-eval task {config['task']!r} needs")
    kwargs = {key: value for key, value in (config.get("dataset_kwargs") or {}).items() if key not in VIDEO_KEYS}
    if not _logged_in():
        kwargs.pop("token", None)  # the data sets are public, and asking for a token that is not there fails
    config["dataset_kwargs"] = kwargs
    where = f"data set {data!r} of lmms-eval task {config['task']!r}"
    with plain_errors(where), _undone(), _data_from(root, data, kwargs):
        from lmms_eval.api.task import ConfigurableMessagesTask

        class Once(ConfigurableMessagesTask):  # type: ignore[misc]
            """Loads its data without five tries that hide what is wrong."""

            download = ConfigurableMessagesTask.download.__wrapped__

        task = Once(config=config, model_name=prompts)
    if prompt:
        task.lmms_eval_specific_kwargs = {**(task.lmms_eval_specific_kwargs or {}), **prompt}
    return task


def _logged_in() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


@contextlib.contextmanager
def _data_from(root: str | None, data: str, kwargs: dict[str, Any]) -> Iterator[None]:
    """Load data sets from a folder, with a cache of their files as they are now.

    ``datasets`` knows cached rows by id, not by content, and would give old ones after a file has changed. GQA loads a
    second data set without saying where its cache is, so the default changes, too, while it does.
    """
    if root is None:
        yield
        return
    import datasets

    state = hashlib.sha256()
    for file in sorted(Path(root, data).rglob("*")):
        if file.is_file():
            state.update(repr((str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns)).encode())
    usual = datasets.config.HF_DATASETS_CACHE
    place = Path(usual) / "by_content" / state.hexdigest()[:16]
    kwargs["cache_dir"] = str(place)
    datasets.config.HF_DATASETS_CACHE = place
    try:
        with contextlib.chdir(root):
            yield
    finally:
        datasets.config.HF_DATASETS_CACHE = usual


@contextlib.contextmanager
def _undone() -> Iterator[None]:
    """Undo what lmms-eval does to the process as it is imported: truncated pictures would pass, and it would print."""
    from PIL import ImageFile

    if importlib.util.find_spec("loguru"):
        from loguru import logger

        for name in ("lmms_eval", "utils"):  # its tasks' modules are executed under the second name
            logger.disable(name)
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


@contextlib.contextmanager
def plain_errors(where: str) -> Iterator[None]:
    """Make one sentence of whatever lmms-eval or its libraries raise inside.

    Args:
        where: what to call it in the message.

    Raises:
        ConfigError: for a package that is missing.
        DataError: for everything else.
    """
    try:
        yield
    except TokenPruneError:
        raise
    except ImportError as error:
        missing = error.name or str(error)
        raise ConfigError(f"{where} needs the package {missing!r}, which is not installed") from None
    except KeyError as error:
        raise DataError(f"{where} lacks {error}: a column of the data set, or a variable such as HF_HOME") from None
    except SystemExit as error:  # some tasks leave the process where a video is missing
        raise DataError(f"{where}: {error.code}") from None
    except Exception as error:
        first = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: {type(error).__name__}: {first[:300]}") from None
