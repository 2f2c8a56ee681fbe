// What a client made by openapi-typescript and openapi-fetch does with a running relay.
import createClient from "openapi-fetch";
import type { components, paths } from "./relay.js";

declare const process: { env: Record<string, string> };

function check(holds: boolean, what: string): asserts holds {
  if (!holds) throw new Error(what);
}

const client = createClient<paths>({
  baseUrl: process.env.RELAY_URL!,
  headers: { "X-API-Key": process.env.RELAY_API_KEY! },
});

const created = await client.POST("/api/events", {
  body: { type: "order.created", payload: { total: 1.5 }, dedup_id: "typescript" },
});
check(created.data?.status === "accepted", "the event was not accepted");
const id: string = created.data.id;

const batch = await client.POST("/api/events/batch", {
  body: [
    { type: "order.paid", payload: null },
    { type: "order.created", payload: {}, dedup_id: "typescript" },
  ],
});
const statuses = batch.data?.results.map((result) => result.status).join();
check(statuses === "accepted,duplicate", `the batch gave ${statuses}`);

const inbox = await client.GET("/api/inbox", { params: { query: { type: "order.*", order: "asc", limit: 10 } } });
const first: components["schemas"]["Event"] | undefined = inbox.data?.events[0];
check(first?.id === id && first.dedup_id === "typescript", "the inbox does not begin with the event");
check(inbox.data?.events.length === 2, "the inbox does not hold both events");

const endpoint = await client.POST("/api/endpoints", {
  body: { url: "https://example.com/hook", event_types: ["order.*"], timeout_s: 2.5, retry_schedule: "standard" },
});
check(endpoint.data?.timeout_s === 2.5, "the endpoint has another timeout");
check(endpoint.data.secret?.startsWith("whsec_") === true, "the endpoint has no secret");
check(endpoint.data.disabled_reason === null, "the endpoint is disabled");

const again = await client.POST("/api/events", {
  body: { type: "order.created", payload: 2, dedup_id: "typescript" },
});
check(again.response.status === 409 && again.error !== undefined, "a duplicate is no error");
check("id" in again.error && again.error.id === id, "the error does not name the first event");
const wrong = await client.POST("/api/endpoints", { body: { url: "nowhere" } });
check(wrong.error?.code === "invalid_request" || wrong.error?.code === "invalid_url", "a wrong URL is no error");
console.log("openapi-typescript: an event, a batch, the inbox, an endpoint, two errors");
