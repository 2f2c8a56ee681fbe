"""For locust's web page or its command line: an open loop for each user.

locust -f bench/locustfile.py --host http://127.0.0.1:8080 --key rly_live_...
"""

from __future__ import annotations

import random
from urllib.parse import urlsplit

from locust import events, task
from locust.argument_parser import LocustArgumentParser
from locust.exception import StopTest

from bench.generator.feed import EventFeed
from bench.generator.plan import Plan
from bench.generator.user import Producer, traffic_of

_MINUTE_S = 60.0


@events.init_command_line_parser.add_listener
def _options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--key", action="append", env_var="RELAY_KEY", is_secret=True, help="API key; may be repeated.")
    parser.add_argument("--rate", type=float, default=100.0, help="Requests a second of each user, open loop.")
    parser.add_argument("--traffic", choices=("events", "small", "batch", "mixed"), default="events")


class Tenant(Producer):
    """Sends by a schedule of Poisson arrivals, a minute at a time, until it is stopped."""

    @task
    def a_minute(self) -> None:
        options = self.environment.parsed_options
        parts = urlsplit(self.environment.host or "")
        if options is None or not options.key or parts.scheme != "http" or parts.hostname is None:
            raise StopTest("--host http://... and --key are needed")
        self.plan = Plan(
            host=parts.hostname,
            port=parts.port or 80,
            keys=options.key,
            traffic=options.traffic,
            rate=options.rate,
            seconds=_MINUTE_S,
            warm_up_s=0.0,
            connections=4,
            seed=random.randrange(2**31),
        )
        self.load(traffic_of(self.plan), EventFeed(self.environment)).run()
