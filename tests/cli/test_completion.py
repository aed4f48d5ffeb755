"""The script of `lintensor-jax completion`, run by bash."""

import shutil
import subprocess

import pytest

from lintensor_jax import cli


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_a_command(capsys):
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    ask = (
        "\nCOMP_WORDS=(lintensor-jax swe); COMP_CWORD=1"
        "\nf=$(complete -p lintensor-jax | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
        '\n$f lintensor-jax swe lintensor-jax; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["sweep"]
