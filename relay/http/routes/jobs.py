"""Starting, listing and stopping jobs."""

from __future__ import annotations

from functools import partial

from relay.http.operations import IDEMPOTENT, Operation
from relay.http.resources.jobs import cancel_job, get_job, list_jobs, replay_endpoint, retry_deliveries
from relay.http.schemas import jobs as schemas
from relay.http.services import Services


def operations(services: Services) -> list[Operation]:
    """Return the operations on jobs."""
    cell = services.cell
    return [
        Operation(
            "POST", "/api/deliveries/retry", partial(retry_deliveries, cell=cell),
            id="retryDeliveries", scope="manage", idempotency=IDEMPOTENT, body=schemas.DeliveriesRetry,
            success={202: schemas.JobStarted},
            errors=("idempotency_key_reused",),
        ),
        Operation(
            "POST", "/api/endpoints/{id}/replay", partial(replay_endpoint, cell=cell),
            id="replayEndpoint", scope="manage", path_noun="endpoint", idempotency=IDEMPOTENT,
            body=schemas.EndpointReplay,
            success={202: schemas.JobStarted},
            errors=("idempotency_key_reused",),
        ),
        Operation(
            "GET", "/api/jobs", partial(list_jobs, cell=cell),
            id="listJobs", scope="manage", query=schemas.JobsParameters,
            success={200: schemas.JobPage},
        ),
        Operation(
            "GET", "/api/jobs/{id}", partial(get_job, cell=cell),
            id="getJob", scope="manage", path_noun="job",
            success={200: schemas.Job},
        ),
        Operation(
            "DELETE", "/api/jobs/{id}", partial(cancel_job, cell=cell),
            id="cancelJob", scope="manage", path_noun="job",
            success={204: None},
        ),
    ]  # fmt: skip
