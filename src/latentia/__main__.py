"""`python -m latentia`, which is also what `torchrun -m latentia` starts."""

from latentia.cli.main import run

if __name__ == "__main__":
    run()
