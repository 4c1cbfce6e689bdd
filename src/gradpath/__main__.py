"""``python -m gradpath``."""

from gradpath.cli import main

if __name__ == "__main__":
    main()
