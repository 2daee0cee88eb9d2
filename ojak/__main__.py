"""`python -m ojak`: the same as the command `ojak`."""

from ojak.cli import main

if __name__ == "__main__":
    main()
