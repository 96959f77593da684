"""`python -m optimizer`: the command, where its script is not on the path."""

from optimizer.cli import main

if __name__ == "__main__":
    main()
