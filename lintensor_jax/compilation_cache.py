"""JAX's cache of compiled programs on disk, with settings that suit many small programs."""

import os
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from .messages import in_words

_FOLDER = "jax_compilation_cache_dir"
# By default JAX keeps only programs that took a second to compile. Here many small programs
# together take most of the time.
_KEEP_ALL: dict[str, Any] = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def enable_compilation_cache(folder: str | os.PathLike[str] | None = None) -> Path:
    """Keep compiled programs on disk, so that another process with the same shapes compiles none.

    Call it once, at the start of a program. It changes settings of JAX for the whole process, and
    importing the package never does that. It serves all programs of the process. Settings that the
    environment gives (`JAX_COMPILATION_CACHE_DIR` and others) are kept;
    `JAX_ENABLE_COMPILATION_CACHE=false` turns the cache off. Programs that call back into Python,
    such as flows with `progress`, are not kept. The folder is never trimmed.

    **Arguments**

    - `folder`: where the programs are kept; it is made if it does not exist. Compiled programs are
      run without a check, so only you should be able to write there. Default: the folder that JAX
      uses already, or `lintensor_jax/jax` in `$XDG_CACHE_HOME` (`~/.cache`), which the command line
      uses as well.

    **Returns** the folder.

    **Raises** ValueError if `folder` is a file, or no path.
    """
    if folder is not None:
        if not isinstance(folder, str | os.PathLike):
            raise ValueError(
                f"folder: must be a path, got {in_words(folder)}; leave it out for the default."
            )
        chosen = Path(folder).expanduser().absolute()
        if chosen.exists() and not chosen.is_dir():
            raise ValueError(f"folder: {chosen} is a file; pass a folder, or leave it out.")
    else:
        chosen = Path(getattr(jax.config, _FOLDER) or default_folder())
    for name, value in _KEEP_ALL.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    if getattr(jax.config, _FOLDER) != str(chosen):
        jax.config.update(_FOLDER, str(chosen))
        # At its first compilation JAX decides whether it uses a cache, and keeps this decision.
        compilation_cache.reset_cache()
    return chosen


def default_folder() -> Path:
    """The folder of compiled programs, if the user names none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "lintensor_jax" / "jax"


def settings_for_processes() -> dict[str, str]:
    """The settings of `enable_compilation_cache` as environment variables, for new processes."""
    settings = {_FOLDER: default_folder(), **_KEEP_ALL}
    names = {name.upper(): str(value) for name, value in settings.items()}
    return {name: os.environ.get(name, value) for name, value in names.items()}
