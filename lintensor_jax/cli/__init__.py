"""The command line: it reads arguments and writes files and messages. It does no numerical work.

`main.py`: the program. `terminal.py`: helpers of all commands. The other modules: the commands.
"""

from .main import main as main
