"""The long run: all faults repeatedly, with rates before and after. `make soak` starts it."""

from __future__ import annotations

import argparse
import logging
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import uvloop

from tests.faults.campaign import Campaign, P, Stalled, Trial, shuffled
from tests.faults.environment import Ground
from tests.faults.faults import CLOCK_FAULTS, FAULTS, UP_FAULTS, Fault
from tests.faults.load import Load
from tests.faults.local_stack import Up
from tests.faults.sampling import Sampler
from tests.faults.steady_load import RATE, Calm
from tests.faults.table import table

_REPORT: Final = Path(__file__).parents[2] / "bench" / "report"


class Soak:
    """One run and its findings.

    Args:
        seconds: for how long rounds are begun; each is made whole.
        seed: of everything that is left to chance.
        rate: requests a second. Of a rate that the machine can hold, what comes after a fault is comparable with what
            came before it; what it can do at most is not, while anything else runs on it.
    """

    def __init__(self, seconds: float, seed: int, rate: float) -> None:
        self._rate = rate
        self._until = time.monotonic() + seconds
        self._seed = seed
        self.trials: list[Trial] = []
        self.wrong: list[str] = []
        self.sampler = Sampler()

    async def run(self, home: Path) -> None:
        """Inject faults until the time is over."""
        async with Ground(_folder(home, "ground"), disk_mb=6 * 1024) as ground, self.sampler.watching(ground):
            await self._rounds(ground, FAULTS, disk=ground.disk.mounted)
        async with Ground(_folder(home, "clock"), clock=True) as ground:
            if ground.clocked:
                await self._rounds(ground, CLOCK_FAULTS)
        async with Up(_folder(home, "up")) as up:
            await self._rounds(up, UP_FAULTS)

    async def _rounds(self, scene: P, faults: Sequence[Fault[P]], *, disk: bool = False) -> None:
        """Run at least one round, and more while there is time."""
        pace = {"producers": 32, "most_outstanding": 20_000, "rate": self._rate}
        async with Load(scene.port, scene.senders, scene.ledger, self._seed, **pace) as load:  # type: ignore[arg-type]
            campaign = Campaign(scene, load, self._seed)
            await campaign.warm_up()
            round_ = 0
            while round_ == 0 or time.monotonic() < self._until:
                for fault in shuffled(faults, self._seed, disk=disk, round_=round_):
                    trial = await campaign.strike(fault, fault.long_hold_s, measure=True)
                    print(trial, flush=True)
                    self.trials.append(trial)
                    self.wrong += [f"{fault.name}: {each}" for each in trial.account.wrong]
                    self.wrong += [f"{fault.name}: {each}" for each in scene.ledger.strange]
                    scene.ledger.strange.clear()
                round_ += 1
            self.wrong += [f"in the end: {each}" for each in (await campaign.finish()).wrong]


def _folder(home: Path, name: str) -> Path:
    made = home / name
    made.mkdir(mode=0o711)
    return made


def main() -> int:
    """Run it and write `soak.md` and `soak.html`, or `calm.md` and `calm.html`; 1 when anything was lost or twice, or
    did not come back.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--calm", type=float, help=f"instead: so many seconds at {RATE} events/s with nothing broken")
    parser.add_argument("--report", type=Path, default=_REPORT)
    options = parser.parse_args()
    options.report.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.CRITICAL)
    home = Path(tempfile.mkdtemp(prefix="relay-soak-"))
    home.chmod(0o711)
    try:
        wrong = _calm(options, home) if options.calm else _strike(options, home)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(f"written to {options.report}")
    for each in wrong:
        print(f"WRONG {each}", file=sys.stderr)
    return 1 if wrong else 0


def _strike(options: argparse.Namespace, home: Path) -> list[str]:
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    print(f"SEED={seed}", flush=True)
    soak = Soak(options.seconds, seed, options.rate)
    begun = time.monotonic()
    try:
        uvloop.run(soak.run(home))
    except Stalled as stalled:
        soak.wrong.append(str(stalled))
    text = table(soak.trials, seed, options.rate, time.monotonic() - begun)
    (options.report / "soak.md").write_text(text, encoding="utf-8")
    (options.report / "soak.html").write_text(soak.sampler.page(), encoding="utf-8")
    print(f"\n{text}")
    return soak.wrong


def _calm(options: argparse.Namespace, home: Path) -> list[str]:
    calm = Calm(options.calm, home)
    uvloop.run(calm.run())
    text = f"{options.calm / 60:.0f} minutes at {RATE} events/s\n" + "".join(f"- {each}\n" for each in calm.found)
    (options.report / "calm.md").write_text(text, encoding="utf-8")
    (options.report / "calm.html").write_text(calm.sampler.page(), encoding="utf-8")
    print(text)
    return calm.wrong


if __name__ == "__main__":
    sys.exit(main())
