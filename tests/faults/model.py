"""A simple model of an organization: what its requests must return. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

#: What a post must be answered with: the status, and which event it names.
Expected = tuple[int, "Event | None"]


@dataclass(slots=True, eq=False)
class Event:
    """An accepted event. Its id is known from the response."""

    type: str
    payload: int
    dedup_id: str | None
    id: str = ""
    acknowledged: bool = False

    @property
    def status(self) -> str:
        """The event's status. Nothing is delivered here, so only an acknowledgement ends a delivery."""
        return "delivered" if self.acknowledged else "pending"


@dataclass(slots=True, eq=False)
class Endpoint:
    """An endpoint as it was created or changed."""

    url: str
    event_types: list[str]
    enabled: bool
    description: str = ""
    is_default: bool = False

    def takes(self, type_: str) -> bool:
        """Return whether it receives events of this type."""
        return not self.event_types or any(
            type_.startswith(each[:-1]) if each.endswith("*") else type_ == each for each in self.event_types
        )


@dataclass(slots=True)
class Organization:
    """Events in the order of their acceptance, keys, endpoints, and the deliveries of each event."""

    events: list[Event] = field(default_factory=list)
    #: By kind and key: the event that has it.
    keys: dict[tuple[str, str], Event] = field(default_factory=dict)
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    #: By event and endpoint: whether it is open; else it was cancelled.
    deliveries: dict[tuple[str, str], bool] = field(default_factory=dict)

    def post(self, event: Event, kind: str, key: str) -> tuple[int, Event]:
        """Return the status of the response to a post, and the event that it names. A 422 names none."""
        holder = self.keys.get((kind, key)) if kind != "-" else None
        if holder is None:
            return 201, event
        same = (holder.type, holder.payload) == (event.type, event.payload)
        if kind == "d":
            return 409, holder
        return (201 if same else 422), holder

    def accepted(self, event: Event, kind: str, key: str) -> None:
        """Record that the event was accepted."""
        self.events.append(event)
        if kind != "-":
            self.keys[kind, key] = event
        self.open(event)

    def open(self, event: Event) -> int:
        """Open a delivery for each matching endpoint, and return their number."""
        matching = [endpoint_id for endpoint_id, endpoint in self.endpoints.items() if endpoint.takes(event.type)]
        self.deliveries.update(dict.fromkeys(((event.id, endpoint_id) for endpoint_id in matching), True))
        return len(matching)

    def acknowledge(self, event: Event) -> None:
        """Acknowledge an event: end its open delivery to the default endpoint, and no other."""
        event.acknowledged = True
        for endpoint_id, endpoint in self.endpoints.items():
            if endpoint.is_default and (event.id, endpoint_id) in self.deliveries:
                self.deliveries[event.id, endpoint_id] = False

    def forget(self, endpoint_id: str) -> None:
        """Delete an endpoint."""
        del self.endpoints[endpoint_id]
        self.deliveries = {pair: open_ for pair, open_ in self.deliveries.items() if pair[1] != endpoint_id}

    def page(self, status: str, type_: str | None = None, dedup_id: str | None = None) -> list[Event]:
        """Return the events of a list, oldest first."""
        return [
            event
            for event in self.events
            if status in ("all", event.status)
            and (type_ is None or Endpoint("", [type_], True).takes(event.type))
            and (dedup_id is None or event.dedup_id == dedup_id)
        ]
