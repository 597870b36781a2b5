"""The command line, the same as `t2i-bench`: see `bench.command`."""

from bench.command import main

if __name__ == "__main__":
    main()
