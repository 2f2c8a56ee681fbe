"""What relay adds to its container image: python scripts/image_size.py [x86_64 | aarch64].

Asks pip for the wheel of each package in requirements/prod.txt as Alpine would be given it (musl or pure Python,
CPython 3.14, by the hashes of the lock), unpacks them as the Dockerfile does, adds relay itself and compiles it all.
Fails if a package has no such wheel, or if a library in one asks for another that neither it nor the base image has.
"""

from __future__ import annotations

import compileall
import gzip
import io
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[1]
LOCK: Final = REPOSITORY / "requirements" / "prod.txt"
# The musl of Alpine is 1.2, and runs what was built for older ones.
MUSL: Final = ("musllinux_1_2", "musllinux_1_1")
# What Python's Alpine image has without being asked: it needs them itself.
BASE: Final = re.compile(r"libc\.musl-\w+\.so\.1|libc\.so|libz\.so\.1|libffi\.so\.8|lib(ssl|crypto)\.so\.3|ld-musl.*")
MB: Final = 1_000_000


def main(arguments: list[str]) -> int:
    """Print the table for the architectures asked for; 1 if something is missing."""
    missing = [line for architecture in arguments or ["x86_64", "aarch64"] for line in _measure(architecture)]
    for line in missing:
        print(line, file=sys.stderr)
    return 1 if missing else 0


def _measure(architecture: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="relay-image-") as folder:
        wheels, site = Path(folder, "wheels"), Path(folder, "site")
        yield from _download(architecture, wheels)
        found = sorted(wheels.glob("*.whl"), key=lambda wheel: -wheel.stat().st_size)
        for wheel in found:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)  # noqa: S202 - zipfile keeps names inside; the lock has its hash
            yield from _unmet(wheel)
        shutil.copytree(REPOSITORY / "relay", site / "relay", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(REPOSITORY / "sql", site / "relay" / "_sql")
        plain = _packed(site)
        compileall.compile_dir(site, quiet=2, workers=0)
        compiled = _packed(site)
        print(f"{architecture}: {len(found)} wheels, {sum(wheel.stat().st_size for wheel in found) / MB:.1f} MB")
        for wheel in found[:8]:
            print(f"  {wheel.stat().st_size / MB:5.2f} MB  {wheel.name}")
        print(f"  unpacked with relay, compiled by Python {sys.version_info.major}.{sys.version_info.minor}: ", end="")
        print(f"{sum(path.stat().st_size for path in site.rglob('*') if path.is_file()) / MB:.1f} MB")
        print(f"  the same as a gzip layer: {compiled / MB:.1f} MB, of which bytecode {(compiled - plain) / MB:.1f} MB")


def _download(architecture: str, wheels: Path) -> Iterator[str]:
    """Fetch every wheel at once or, if that fails, one by one; yield the packages that have none."""
    if _pip(architecture, wheels, LOCK):
        return
    for pin in re.split(r"\n(?=\S)", LOCK.read_text(encoding="utf-8").strip()):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(pin + "\n")
            file.flush()
            if not _pip(architecture, wheels, Path(file.name)):
                yield f"{pin.split()[0]} has no wheel for musl on {architecture}"


def _pip(architecture: str, wheels: Path, lock: Path) -> bool:
    platforms = [option for musl in MUSL for option in ("--platform", f"{musl}_{architecture}")]
    abis = [option for abi in ("cp314", "abi3", "none") for option in ("--abi", abi)]
    asked = ["--require-hashes", "--no-deps", "--only-binary=:all:", "--requirement", str(lock)]
    target = ["--python-version", "3.14", "--implementation", "cp", *abis, *platforms]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
    return subprocess.run([*pip, *asked, *target, "--dest", str(wheels)], check=False).returncode == 0  # noqa: S603


def _unmet(wheel: Path) -> Iterator[str]:
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if re.search(r"\.so(\.|$)", name)]
        carried = {Path(name).name for name in libraries}
        for name in libraries:
            for needed in needs(archive.read(name)):
                if needed not in carried and not BASE.fullmatch(needed):
                    yield f"{wheel.name}: {name} needs {needed}, which the base image lacks"


def needs(elf: bytes) -> list[str]:
    """The shared libraries that a 64-bit little-endian ELF file asks the loader for (DT_NEEDED, ELF gABI)."""
    if elf[:6] != b"\x7fELF\x02\x01":
        return []
    (table,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    segments = [struct.unpack_from("<IIQQQQ", elf, table + number * size) for number in range(count)]
    dynamic = next(((at, length) for kind, _, at, _, _, length in segments if kind == 2), None)
    if dynamic is None:
        return []
    entries = [struct.unpack_from("<qQ", elf, dynamic[0] + offset) for offset in range(0, dynamic[1], 16)]
    entries = entries[: next(i for i, (tag, _) in enumerate(entries) if tag == 0)]
    strings = next(value for tag, value in entries if tag == 5)
    base = next(
        at + strings - start
        for kind, _, at, start, _, length in segments
        if kind == 1 and start <= strings < start + length
    )
    return [elf[base + value : elf.index(b"\0", base + value)].decode() for tag, value in entries if tag == 1]


def _packed(folder: Path) -> int:
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        tar.add(folder, arcname="site-packages")
    return buffer.tell()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
