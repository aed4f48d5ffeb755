"""Results as HTML for notebooks: the text that `print` shows, escaped."""

import html
import re

import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.messages import as_html

X = np.array([[1.0, 2.0], [0.5, -1.0]])
REGRESSION = lt.Regression(X[:1], np.ones(1))
CLASSIFICATION = lt.Classification(X, np.array([1.0, -1.0]))
NETWORK = lt.DiagonalNetwork(np.array([[1.0, 2.0], [0.5, 0.25]]))
RESULTS = {
    "prediction": lambda: lt.predict(NETWORK, REGRESSION),
    "certificate": lambda: lt.certify(NETWORK, CLASSIFICATION),
    "min norm": lambda: lt.min_norm(REGRESSION, lt.L1Norm()),
    "max margin": lambda: lt.max_margin(CLASSIFICATION, lt.L2Norm()),
}


def text_of(markup):
    """The text of `markup`, which must be one preformatted block and nothing else."""
    inner = re.fullmatch(r"<pre[^<>]*>(.*)</pre>", markup, re.DOTALL)
    assert inner
    plain = inner[1].replace("<strong>", "", 1).replace("</strong>", "", 1)
    assert "<" not in plain
    assert ">" not in plain
    return html.unescape(plain)


@pytest.mark.parametrize("name", RESULTS)
def test_a_notebook_shows_what_print_shows(name):
    result = RESULTS[name]()
    assert text_of(result._repr_html_()) == str(result).rstrip() + (
        "" if "\n" in str(result) else "\n"
    )


def test_markup_in_words_is_escaped():
    words = 'a < b & "c"\n<script>alert(1)</script>'
    markup = as_html(words)
    assert "<script>" not in markup
    assert text_of(markup) == words
