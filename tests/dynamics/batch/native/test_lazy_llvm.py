"""LLVM is loaded by the first batch that needs machine code, not by `import lintensor_jax`."""

import subprocess
import sys


def test_importing_the_package_does_not_load_llvm():
    program = "import sys, lintensor_jax; sys.exit('llvmlite' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
