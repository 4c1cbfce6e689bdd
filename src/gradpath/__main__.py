"""``python -m gradpath``."""

from gradpath.commands.cli import main

if __name__ == "__main__":
    main()
