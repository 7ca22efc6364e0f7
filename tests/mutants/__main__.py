"""Apply each bug in a private copy of the tree and see that the suite catches it: ``python -m mutants [name ...]``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
#: how many are tried at a time
AT_ONCE = 2
#: seconds after which a run of tests is given up
PATIENCE = 300
#: what pytest answers where tests ran, and some failed
FAILED = 1


class Verdict(NamedTuple):
    """What became of a run of tests."""

    code: int
    by: str
    """the first test that failed"""
    seconds: float
    output: str


def run(tree: Path, tests: Sequence[str]) -> Verdict:
    """Run tests on a tree with this suite's own interpreter."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--basetemp", str(tree / "temp"), *tests]
    env = {name: value for name, value in os.environ.items() if name != "SEED"} | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(command, cwd=tree, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        output += "\nit did not end"
    failed = re.search(r"^FAILED \S*?(test_\w+\.py::\S+)", output, re.MULTILINE)
    return Verdict(process.returncode, failed[1] if failed else "", time.monotonic() - began, output)


def mutate(tree: Path, mutant: Mutant) -> None:
    """Write the bug into a tree."""
    path = tree / mutant.file
    text = path.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.name}: its text occurs {text.count(mutant.old)} times in {mutant.file}"
    path.write_text(text.replace(mutant.old, mutant.new))


def attempt(folder: Path, mutant: Mutant) -> Verdict:
    """Try one bug in a copy of its own."""
    tree = folder / mutant.name
    shutil.copytree(folder / "sound", tree)
    mutate(tree, mutant)
    try:
        return run(tree, mutant.tests)
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def main(names: Sequence[str]) -> int:
    unknown = set(names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        sys.exit(f"no such mutant: {', '.join(sorted(unknown))}")
    wanted = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    with tempfile.TemporaryDirectory(prefix="mutants") as name, ThreadPoolExecutor(AT_ONCE) as pool:
        folder = Path(name)
        shutil.copytree(ROOT, folder / "sound", ignore=LEFT_OUT)
        sound = run(folder / "sound", sorted({test for mutant in wanted for test in mutant.tests}))
        if sound.code != 0:
            print(sound.output[-4000:], "\nthese tests fail without any bug", sep="")
            return 1
        print(f"{'without any bug':28} {'all pass':96} {sound.seconds:5.0f} s", flush=True)
        caught = 0
        for mutant, verdict in zip(wanted, pool.map(lambda one: attempt(folder, one), wanted), strict=True):
            found = verdict.code == FAILED and bool(verdict.by)
            caught += found
            by = verdict.by if found else f"NOT CAUGHT (pytest answered {verdict.code}): {mutant.rule}"
            print(f"{mutant.name:28} {by:96} {verdict.seconds:5.0f} s", flush=True)
            if not found:
                print(verdict.output[-1500:])
    print(f"{caught}/{len(wanted)}")
    return caught != len(wanted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
