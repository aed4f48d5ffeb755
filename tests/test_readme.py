"""The README's program prints what the README shows, and its names exist."""

import pathlib
import re
import tomllib

import numpy as np

import lintensor_jax as lt

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def require_as_printed(call, values):
    """The first numbers of the README's comment on `call` must be these, to its digits."""
    comment = README.split(f"\n{call}")[1].split("\n")[0]
    words = re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", comment)[: len(values)]
    for word, value in zip(words, values, strict=True):
        digits, _, power = word.partition("e")
        last = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
        # Half a unit of the last digit, and a tenth of one for other processors' rounding.
        assert abs(float(word) - float(value)) <= 0.6 * last, (call, word, value)


def test_the_five_minutes_run_as_printed():
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), scope)
    beta = scope["solution"].coefficients[-1]
    require_as_printed("print(solution.coefficients[-1])", beta)
    predicted = lt.predict(scope["network"], scope["problem"])
    assert "Theorem 6" in str(predicted.theorem)
    assert predicted.limit is not None
    np.testing.assert_allclose(beta, predicted.limit, rtol=0, atol=1e-10)
    flow = scope["flow"]
    # The last step ends beyond the margin of 1e8, by an amount that depends on its length.
    require_as_printed("print(flow.direction[-1], flow.log_loss[-1])", flow.direction[-1])
    np.testing.assert_allclose(flow.direction[-1], [0, 1], rtol=0, atol=1e-6)
    assert float(flow.log_loss[-1]) < -1e8
    np.testing.assert_allclose(scope["batch"][-1], beta, rtol=0, atol=1e-9)


def test_the_names_in_the_table_exist():
    table = README[README.index("| to | use |") : README.index("## How it gets")]
    for name in re.findall(r"`([A-Za-z_.]+)", table):
        target = lt
        for part in name.removeprefix("lt.").split("."):
            target = getattr(target, part)


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]
    assert lt.__version__.count(".") == 2
    assert f"\nversion: {lt.__version__}\n" in (ROOT / "CITATION.cff").read_text()
