"""`python -m mdcs` is `mdcs`."""

from mdcs.cli import main

if __name__ == "__main__":
    main()
