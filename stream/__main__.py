"""`python -m stream` is `innerloop`."""

from stream.cli import main

if __name__ == "__main__":
    main()
