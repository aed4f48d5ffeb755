"""TOML files as validated, frozen dataclasses.

A configuration is a dataclass derived from `Config` whose fields are made by `setting` (a value
with a rule) or `table` (a nested configuration)::

    @dataclasses.dataclass(frozen=True)
    class Flow(Config):
        rtol: float = setting(1e-10, Number(above=0))

    flow = load("flow.toml", Flow)

The rules hold however the object is made. Every error names the file (if there is one), the key,
the rule, the value and the fix.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

_LONGEST = 60  # characters of a value in a message


class ConfigError(ValueError):
    """A mistake in a configuration: the dotted path of a key, and the problem with its value.

    `also`: further mistakes in the same configuration.
    """

    def __init__(self, key: str, problem: str, also: "tuple[ConfigError, ...]" = ()):
        others = "".join(f" Also: {other.key} {other.problem}" for other in also)
        super().__init__(f"{key} {problem}{others}".strip())
        self.key, self.problem, self.also = key, problem, also

    def below(self, prefix: str) -> "ConfigError":
        """The same mistakes with `prefix` before each key: the path of the enclosing table."""
        also = tuple(other.below(prefix) for other in self.also)
        return ConfigError(f"{prefix}{self.key}", self.problem, also)


class Rejected(NamedTuple):
    """What a rule returns for a value that breaks it; `where` is an index such as "[2]"."""

    rule: str
    value: Any
    where: str = ""
    fix: str = ""


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number, optionally above a bound, or at least one."""

    above: float | None = None
    at_least: float | None = None

    def read(self, value: Any) -> float | Rejected:
        """The number as a float."""
        rule = "a finite number" + ("" if self.above is None else f" > {self.above:g}")
        rule += "" if self.at_least is None else f" >= {self.at_least:g}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return Rejected(rule, value, fix=_quotes_hint(value, float))
        try:
            number = float(value)
        except OverflowError:  # a whole number above the largest float
            number = math.inf
        if not math.isfinite(number) or (self.above is not None and number <= self.above):
            return Rejected(rule, value)
        if self.at_least is not None and number < self.at_least:
            return Rejected(rule, value)
        return number


@dataclasses.dataclass(frozen=True)
class Integer:
    """A whole number, at least `at_least` and at most `at_most`."""

    at_least: int
    at_most: int = 2**32 - 1

    def read(self, value: Any) -> int | Rejected:
        """The number as an int."""
        rule = f"a whole number >= {self.at_least}"
        if isinstance(value, bool) or not isinstance(value, int):
            whole = isinstance(value, float) and value.is_integer() and value <= self.at_most
            fix = f"write {int(value)}" if whole else _quotes_hint(value, int)
            return Rejected(rule, value, fix=fix)
        if value > self.at_most:
            return Rejected(f"{rule} and <= {self.at_most}", value)
        return value if value >= self.at_least else Rejected(rule, value)


@dataclasses.dataclass(frozen=True)
class ListOf:
    """A non-empty list whose entries all obey the rule `entry`; `length` fixes its length."""

    entry: Any
    length: int | None = None

    def read(self, value: Any) -> tuple | Rejected:
        """The entries as a tuple."""
        size = "that is not empty" if self.length is None else f"of {self.length} entries"
        rule = f"a list {size}"
        if not isinstance(value, list | tuple):
            return Rejected(rule, value, fix="put it in square brackets")
        if len(value) == 0 or self.length not in (None, len(value)):
            return Rejected(rule, list(value))
        entries = [self.entry.read(item) for item in value]
        for index, item in enumerate(entries):
            if isinstance(item, Rejected):
                return item._replace(where=f"[{index}]{item.where}")
        return tuple(entries)


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of the given words."""

    words: tuple[str, ...]

    def read(self, value: Any) -> str | Rejected:
        """`value` if it is one of `words`; else a `Rejected` that suggests one."""
        if value in self.words:
            return value
        fix = suggestion(value, self.words) if isinstance(value, str) else ""
        return Rejected(f"one of {', '.join(self.words)}", value, fix=fix)


@dataclasses.dataclass(frozen=True)
class Text:
    """A text, such as a path."""

    def read(self, value: Any) -> str | Rejected:
        """`value` if it is a string; else a `Rejected`."""
        return (
            value if isinstance(value, str) else Rejected("a text", value, fix="put it in quotes")
        )


@dataclasses.dataclass(frozen=True)
class Flag:
    """true or false."""

    def read(self, value: Any) -> bool | Rejected:
        """`value` if it is a bool; else a `Rejected`."""
        return value if isinstance(value, bool) else Rejected("true or false", value)


@dataclasses.dataclass(frozen=True)
class Maybe:
    """A value that may be left out; then it is None."""

    rule: Any

    def read(self, value: Any) -> Any:
        """None, or what `rule` reads."""
        return None if value is None else self.rule.read(value)


@dataclasses.dataclass(frozen=True)
class OneOrMany:
    """One value, or a list of values (a tuple here)."""

    entry: Any

    def read(self, value: Any) -> Any:
        """What `entry` reads: one value, or a tuple of values."""
        many = isinstance(value, list | tuple)
        return ListOf(self.entry).read(value) if many else self.entry.read(value)


def setting(default: Any, rule: Any, words: str = "") -> Any:
    """A field of a `Config`: its default, its rule (`Number`, `Integer`, ...) and what it means."""
    return dataclasses.field(default=default, metadata={"rule": rule, "words": words})


def table(kind: type["Config"]) -> Any:
    """A field of a `Config` that is a TOML table."""
    return dataclasses.field(default_factory=kind, metadata={"table": kind})


@dataclasses.dataclass(frozen=True)
class Config:
    """Base of all configurations: every field is checked against its rule."""

    def __post_init__(self):
        fields = [field for field in dataclasses.fields(self) if "rule" in field.metadata]
        read = {field.name: _read(field, getattr(self, field.name)) for field in fields}
        _raise_all([value for value in read.values() if isinstance(value, ConfigError)])
        for name, value in read.items():
            object.__setattr__(self, name, value)
        self.check()

    def check(self) -> None:
        """Check rules between fields; raises a ConfigError that names the field to change."""


C = TypeVar("C", bound=Config)


def load(path: str | Path, kind: type[C]) -> C:
    """The configuration in a TOML file; missing keys have their defaults.

    Raises ConfigError for an unreadable file, wrong TOML, an unknown key or a broken rule.
    """
    import tomllib  # here, since `import lintensor_jax` reads no TOML file

    try:
        entries = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}:", "no such file; check the path.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}:", "is a folder; name a TOML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}:", f"cannot be read as UTF-8 text ({error}).") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}:", f"is not valid TOML: {error}.") from None
    except (RecursionError, ValueError, MemoryError) as error:
        why = str(error).partition(";")[0] or "it is too large"
        raise ConfigError(
            f"{path}:",
            f"is no configuration: lists may be at most 6 deep, numbers may have at most 20 "
            f"digits. Reading it ended with {type(error).__name__} ({why}); remove such a value.",
        ) from None
    try:
        return _from_entries(entries, kind, "")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.key}", error.problem, error.also) from None


def _from_entries(entries: dict[str, Any], kind: type[C], prefix: str) -> C:
    """The configuration; or one error that names every key that is unknown or breaks its rule."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = {}
    for name, value in entries.items():
        key = f"{prefix}{name}"
        nested = fields[name].metadata.get("table") if name in fields else None
        if name not in fields:
            values[name] = ConfigError(key, f"is not a known key; {suggestion(name, fields)}")
        elif nested is None:
            read = _read(fields[name], value)
            values[name] = read.below(prefix) if isinstance(read, ConfigError) else read
        elif isinstance(value, dict):
            try:
                values[name] = _from_entries(value, nested, f"{key}.")
            except ConfigError as error:
                values[name] = error
        else:
            words = f"must be a table, got {_shown(value)}; write [{key}] and its keys below."
            values[name] = ConfigError(key, words)
    _raise_all([value for value in values.values() if isinstance(value, ConfigError)])
    try:
        return kind(**values)
    except ConfigError as error:
        raise error.below(prefix) from None


def _read(field: dataclasses.Field, value: Any) -> Any:
    """The value as the field's rule reads it, or a ConfigError with the rule, value and fix."""
    read = field.metadata["rule"].read(value)
    if not isinstance(read, Rejected):
        return read
    default = f"the default is {_toml(field.default)}"
    fix = read.fix or ("leave it out" if field.default is None else default)
    problem = f"must be {read.rule}, got {_shown(read.value)}; {fix.rstrip('?')}"
    return ConfigError(f"{field.name}{read.where}", problem + ("?" if fix.endswith("?") else "."))


def _raise_all(broken: list[ConfigError]) -> None:
    """Raise the first of these mistakes, with all others in it; return if the list is empty."""
    flat = [mistake for error in broken for mistake in (error, *error.also)]
    if flat:
        also = tuple(ConfigError(error.key, error.problem) for error in flat[1:])
        raise ConfigError(flat[0].key, flat[0].problem, also)


def suggestion(word: str, known: Iterable[str]) -> str:
    """'did you mean ...?', or the list of known words if none is similar."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f'did you mean "{close[0]}"?' if close else f"known: {', '.join(known)}"


def _quotes_hint(value, kind):
    try:
        kind(value) if isinstance(value, str) else kind("?")
    except ValueError:
        return ""
    return "remove the quotes"


def _shown(value: Any) -> str:
    """A value of a file in at most 60 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or very deep lists
        text = "a value that is too long to print"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text):,} characters)"


def _toml(value):
    return json.dumps(value)  # JSON and TOML write lists of numbers in the same way.
