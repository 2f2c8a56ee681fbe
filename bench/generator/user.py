"""The locust side: a User whose task is one whole run, and a run of it without the web page."""

from __future__ import annotations

import gc
from pathlib import Path

import gevent
from gevent.event import AsyncResult
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser

from bench.generator.feed import BulkFeed, EventFeed, Feed
from bench.generator.idle import IdleConnections
from bench.generator.load import ClosedLoop, Load, OpenLoop, go_first
from bench.generator.mixed import Mixed
from bench.generator.plan import Plan, Result
from bench.generator.receipts import Receipts
from bench.generator.traffic import Batches, Events, Small, Traffic, refused


class Producer(User):
    """Follows a plan over many connections, without a greenlet for each. Subclasses set `plan`."""

    abstract = True
    plan: Plan

    def load(self, traffic: Traffic, feed: Feed) -> Load:
        """Return the run, which calls `feed` with each response."""
        if self.plan.rate is None:
            return ClosedLoop(self.plan, traffic, feed)
        return OpenLoop(self.plan, traffic, feed, self.plan.rate)


def traffic_of(plan: Plan, receipts: Receipts | None = None) -> Traffic:
    """The traffic of the plan."""
    host = f"{plan.host}:{plan.port}"
    match plan.traffic:
        case "small":
            return Small(host, plan.keys)
        case "refused":
            return Small(host, plan.keys, refused)
        case "events":
            return Events(host, plan.keys, plan.seed, receipts.note if receipts else None)
        case "batch":
            return Batches(host, plan.keys, plan.batch)
        case "mixed":
            return Mixed(host, plan.keys, plan.seed)


def run(plan: Plan) -> Result:
    """Run a plan with one user and locust's runner."""
    box: AsyncResult = AsyncResult()
    # In a closed loop it would take the core from the server whenever there is something to send.
    priority = "as all others" if plan.rate is None else go_first()
    receipts = Receipts() if plan.receipts else None
    traffic = traffic_of(plan, receipts)

    class Planned(Producer):
        @task
        def all_of_it(self) -> None:
            load = self.load(traffic, feed)
            try:
                load.run()
                box.set(load)
            except BaseException as error:
                box.set_exception(error)
                raise
            raise StopUser

    Planned.plan = plan
    environment = Environment(user_classes=[Planned])
    bulk = BulkFeed(environment)
    feed: Feed = bulk if plan.rate is None else EventFeed(environment)
    runner = environment.create_local_runner()
    idle = IdleConnections(plan)
    idle.open()
    # A collection of the arrays of a run takes longer than a late start may.
    gc.collect()
    gc.freeze()
    gc.disable()
    runner.start(1, spawn_rate=1)
    flushing = gevent.spawn(_flush_often, bulk)
    load: Load = box.get()
    flushing.kill()
    bulk.flush()
    runner.quit()
    gevent.sleep(0)
    if receipts and plan.receipts:
        receipts.write(Path(plan.receipts))
    tally, total = load.tally, environment.stats.total
    result = Result(
        began=load.began,
        ended=load.ended,
        rate=plan.rate,
        late_p99_ms=tally.late_ms(0.99),
        late_most_ms=tally.late_ms(1.0),
        held=tally.held,
        drops=tally.drops,
        failures=dict(tally.failures),
        latency=tally.total(),
        kinds=tally.kinds(),
        seconds=tally.seconds(load.began, load.ended),
        cpu_s=load.cpu_s,
        connections=load.opened,
        priority=priority,
        locust_requests=total.num_requests,
        locust_failures=total.num_failures,
        locust_p99_ms=float(total.get_response_time_percentile(0.99) or 0),
        idle_lost=idle.close(),
    )
    if isinstance(traffic, Mixed):
        result.notes = {"accepted": traffic.accepted, "read": traffic.read, "acknowledged": traffic.acknowledged}
    return result


def _flush_often(feed: BulkFeed) -> None:
    while True:
        gevent.sleep(0.25)
        feed.flush()
