"""Configurations: the shipped files have the defaults; messages name every mistake and its fix."""

import dataclasses
from pathlib import Path

import pytest

from lintensor_jax.config import Config, ConfigError, load
from lintensor_jax.experiments import EXPERIMENTS, find
from lintensor_jax.sweeps.from_toml.configuration import Sweep

CONFIGS = Path(__file__).parents[1] / "configs"
Yun2021 = find("yun2021").Configuration


def _load(tmp_path, text):
    path = tmp_path / "setup.toml"
    path.write_text(text)
    return load(path, Yun2021)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_shipped_file_is_the_default_and_names_every_key(name):
    kind = find(name).Configuration
    path = CONFIGS / f"{name}.toml"
    assert load(path, kind) == kind()
    text = path.read_text()
    for key in _keys(kind()):
        assert f"\n{key} = " in text


def _keys(config):
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        yield from _keys(value) if isinstance(value, Config) else [field.name]


def test_left_out_keys_have_their_defaults(tmp_path):
    config = _load(tmp_path, "alphas = [1]\n[classification]\nmargin = 1e6\n")
    assert config.alphas == (1.0,)
    assert config.classification.margin == 1e6
    assert config.classification.descent_num_steps == 2_000_000
    assert config.regression == Yun2021().regression


@pytest.mark.parametrize(
    ("text", "key", "parts"),
    [
        ("alfas = [1.0]", "alfas", ["not a known key", 'did you mean "alphas"?']),
        ("[regression]\nxyzzy = 1", "regression.xyzzy", ["not a known key", "known: x, y"]),
        ("alphas = []", "alphas", ["a list that is not empty", "got []", "[0.01, 0.5, 1.0]"]),
        ("alphas = 1.0", "alphas", ["a list", "got 1.0", "square brackets"]),
        ("alphas = [1.0, -0.5]", "alphas[1]", ["a finite number > 0", "got -0.5", "default"]),
        ("alphas = [0]", "alphas[0]", ["> 0", "got 0"]),
        ("alphas = [nan]", "alphas[0]", ["finite", "got nan"]),
        ("alphas = [inf]", "alphas[0]", ["finite", "got inf"]),
        ('alphas = ["0.1"]', "alphas[0]", ["got '0.1'", "remove the quotes"]),
        ("alphas = [true]", "alphas[0]", ["a finite number", "got True"]),
        ("num_directions = 4.0", "num_directions", ["a whole number >= 1", "write 4"]),
        ("num_directions = 2.5", "num_directions", ["a whole number >= 1", "got 2.5", "is 4"]),
        ("num_directions = 0", "num_directions", [">= 1", "got 0"]),
        ("seed = true", "seed", ["a whole number", "got True"]),
        ("regression = 1", "regression", ["must be a table", "got 1", "[regression]"]),
        ("[regression]\nrtol = -1e-10", "regression.rtol", ["> 0", "got -1e-10", "is 1e-10"]),
        ("[regression]\nx = [1, 2, 3]", "regression.x", ["of 2 entries", "got [1, 2, 3]"]),
        ("[regression]\nx = [0, 0]", "regression.x", ["must not be zero"]),
        ("[classification]\nX = [[1, 2], [3]]", "classification.X[1]", ["of 2", "got [3]"]),
        ("[classification]\nX = [[1, nan]]", "classification.X[0][1]", ["finite", "got nan"]),
        ("[classification]\ny = [1]", "classification.y", ["one label per row of X (2)", "got 1"]),
        ("[classification]\ny = [1, 0]", "classification.y[1]", ["-1 or 1", "got 0"]),
    ],
)
def test_a_mistake_is_named_with_file_key_rule_value_and_fix(tmp_path, text, key, parts):
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'setup.toml'}: {key} ")
    for part in parts:
        assert part in message


def test_wrong_toml_names_the_place(tmp_path):
    with pytest.raises(ConfigError, match=r"setup\.toml: is not valid TOML: .*line 2, column 13"):
        _load(tmp_path, "seed = 1\nalphas = 0.0.1\n")


def test_a_missing_or_binary_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "absent.toml", Yun2021)
    with pytest.raises(ConfigError, match=r"is a folder; name a TOML file\."):
        load(tmp_path, Yun2021)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8"):
        load(tmp_path / "binary.toml", Yun2021)


def test_the_rules_hold_in_python_too():
    with pytest.raises(ConfigError, match=r"alphas\[0\] must be a finite number > 0, got 0"):
        Yun2021(alphas=(0,))
    with pytest.raises(ConfigError, match="rtol"):
        dataclasses.replace(Yun2021().regression, rtol=0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Yun2021().seed = 1


def test_all_mistakes_of_a_file_are_named_at_once(tmp_path):
    file = tmp_path / "flow.toml"
    file.write_text('seed = -1\nnetwrk = 2\n[data]\ntask = "regresion"\nX = [[1.0, "2"]]\n')
    with pytest.raises(ConfigError) as caught:
        load(file, Sweep)
    for words in ("seed must be", "netwrk is not", "data.task must be", "data.X[0][1] must be"):
        assert words in str(caught.value)
    assert str(caught.value).count("Also:") == 3
