"""`python -m dcnzoo`."""

from dcnzoo.cli.main import main

if __name__ == "__main__":
    main()
