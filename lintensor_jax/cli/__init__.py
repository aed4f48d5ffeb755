"""The command line: arguments in, files and messages out. It knows no numerics.

`main.py` holds the program, `terminal.py` what every command needs, the other modules the commands.
"""

from .main import main as main
