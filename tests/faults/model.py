"""What an organization must see of itself, as simply as it can be said. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

#: What a post must be answered with: the status, and which event it names.
Expected = tuple[int, "Event | None"]


@dataclass(slots=True, eq=False)
class Event:
    """An event that was accepted; its id is known from the answer."""

    type: str
    payload: int
    dedup_id: str | None
    id: str = ""
    acknowledged: bool = False

    @property
    def status(self) -> str:
        """Nothing is ever sent here, so only an acknowledgement ends anything."""
        return "delivered" if self.acknowledged else "pending"


@dataclass(slots=True, eq=False)
class Endpoint:
    """An endpoint, as it was made or changed."""

    url: str
    event_types: list[str]
    enabled: bool
    description: str = ""
    is_default: bool = False

    def takes(self, type_: str) -> bool:
        """Whether events of this type go to it."""
        return not self.event_types or any(
            type_.startswith(each[:-1]) if each.endswith("*") else type_ == each for each in self.event_types
        )


@dataclass(slots=True)
class Organization:
    """Events in the order of their acceptance, keys, endpoints, and the deliveries there are of each event."""

    events: list[Event] = field(default_factory=list)
    #: By kind and key: the event that has it.
    keys: dict[tuple[str, str], Event] = field(default_factory=dict)
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    #: By event and endpoint: whether it is open; else it was cancelled.
    deliveries: dict[tuple[str, str], bool] = field(default_factory=dict)

    def post(self, event: Event, kind: str, key: str) -> tuple[int, Event]:
        """What a single post is answered with, and the event that it names; 422 names none that is told."""
        holder = self.keys.get((kind, key)) if kind != "-" else None
        if holder is None:
            return 201, event
        same = (holder.type, holder.payload) == (event.type, event.payload)
        if kind == "d":
            return 409, holder
        return (201 if same else 422), holder

    def accepted(self, event: Event, kind: str, key: str) -> None:
        """It was, under the id that it has by now."""
        self.events.append(event)
        if kind != "-":
            self.keys[kind, key] = event
        self.open(event)

    def open(self, event: Event) -> int:
        """A delivery to each endpoint that takes it; how many."""
        matching = [endpoint_id for endpoint_id, endpoint in self.endpoints.items() if endpoint.takes(event.type)]
        self.deliveries.update(dict.fromkeys(((event.id, endpoint_id) for endpoint_id in matching), True))
        return len(matching)

    def acknowledge(self, event: Event) -> None:
        """Ends what is open for the default endpoint, and for no other."""
        event.acknowledged = True
        for endpoint_id, endpoint in self.endpoints.items():
            if endpoint.is_default and (event.id, endpoint_id) in self.deliveries:
                self.deliveries[event.id, endpoint_id] = False

    def forget(self, endpoint_id: str) -> None:
        """An endpoint was deleted."""
        del self.endpoints[endpoint_id]
        self.deliveries = {pair: open_ for pair, open_ in self.deliveries.items() if pair[1] != endpoint_id}

    def page(self, status: str, type_: str | None = None, dedup_id: str | None = None) -> list[Event]:
        """The events of a list, oldest first."""
        return [
            event
            for event in self.events
            if status in ("all", event.status)
            and (type_ is None or Endpoint("", [type_], True).takes(event.type))
            and (dedup_id is None or event.dedup_id == dedup_id)
        ]
