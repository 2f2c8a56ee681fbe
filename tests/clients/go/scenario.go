// What a client made by oapi-codegen does with a running relay.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
)

func check(holds bool, what string, more ...any) {
	if !holds {
		fmt.Fprintln(os.Stderr, append([]any{"oapi-codegen:", what}, more...)...)
		os.Exit(1)
	}
}

func main() {
	withKey := func(ctx context.Context, request *http.Request) error {
		request.Header.Set("X-API-Key", os.Getenv("RELAY_API_KEY"))
		return nil
	}
	client, err := NewClientWithResponses(os.Getenv("RELAY_URL"), WithRequestEditorFn(withKey))
	check(err == nil, "no client", err)
	ctx := context.Background()

	dedup := "go"
	event := EventCreate{Type: "order.created", Payload: map[string]any{"total": 1.5}, DedupId: &dedup}
	created, err := client.CreateEventWithResponse(ctx, nil, event)
	check(err == nil && created.JSON201 != nil, "the event was not accepted", err)

	batch, err := client.CreateEventsWithResponse(ctx, nil, []EventCreate{{Type: "order.paid"}, event})
	check(err == nil && batch.JSON200 != nil && len(batch.JSON200.Results) == 2, "no results", err)
	check(batch.JSON200.Results[0].Status == BatchResultStatusAccepted, "the first of the batch was not accepted")
	check(batch.JSON200.Results[1].Status == BatchResultStatusDuplicate, "the second of the batch is no duplicate")

	types, order, limit := "order.*", ReadInboxParamsOrderAsc, 10
	inbox, err := client.ReadInboxWithResponse(ctx, &ReadInboxParams{Type: &types, Order: &order, Limit: &limit})
	check(err == nil && inbox.JSON200 != nil && len(inbox.JSON200.Events) == 2, "the inbox does not hold both", err)
	check(inbox.JSON200.Events[0].Id == created.JSON201.Id, "the inbox does not begin with the event")

	timeout, filters := 2.5, []string{"order.*"}
	endpoint, err := client.CreateEndpointWithResponse(ctx, nil, EndpointCreate{
		Url: "https://example.com/hook", EventTypes: &filters, TimeoutS: &timeout,
	})
	check(err == nil && endpoint.JSON201 != nil, "no endpoint", err)
	check(*endpoint.JSON201.TimeoutS == timeout, "the endpoint has another timeout")
	check(strings.HasPrefix(*endpoint.JSON201.Secret, "whsec_"), "the endpoint has no secret")

	again, err := client.CreateEventWithResponse(ctx, nil, event)
	check(err == nil && again.JSON409 != nil && again.JSON409.Id == created.JSON201.Id, "a duplicate is no error", err)
	wrong, err := client.CreateEndpointWithResponse(ctx, nil, EndpointCreate{Url: "nowhere"})
	check(err == nil && wrong.JSON422 != nil && wrong.JSON422.Code != "", "a wrong URL is no error", err)
	fmt.Println("oapi-codegen: an event, a batch, the inbox, an endpoint, two errors")
}
