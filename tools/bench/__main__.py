"""`./dev bench NAME`."""

from __future__ import annotations

import importlib
import sys

BENCHES = {name: f"tools.bench.{name}" for name in ("launch", "api", "cycles", "many")}


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHES:
        print(f"usage: ./dev bench {'|'.join(BENCHES)} [--json] [options]; --help shows them", file=sys.stderr)
        return 2
    result: int = importlib.import_module(BENCHES[name]).main(sys.argv[2:])
    return result


if __name__ == "__main__":
    sys.exit(main())
