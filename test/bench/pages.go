package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
)

const (
	openPages    = 100
	pagesGoal    = 0.95
	pagesClients = 64
)

func benchPages(ctx context.Context, b *bench) error {
	app, err := b.startApp(ctx, nil)
	if err != nil {
		return err
	}
	defer app.stop()
	var without, with []float64
	for round := range b.rounds {
		err := b.takeTurns(ctx, round, []func() error{
			func() error {
				l, err := b.wrk(ctx, app.url, pagesClients, turn)
				return note(&without)(l.rate(), err)
			},
			func() error {
				closePages, err := openEvents(ctx, app.url, openPages)
				if err != nil {
					return err
				}
				defer closePages()
				l, err := b.wrk(ctx, app.url, pagesClients, turn)
				return note(&with)(l.rate(), err)
			},
		})
		if err != nil {
			return err
		}
		b.say("round %d of %d: no page %.0f, %d pages %.0f a second", round+1, b.rounds, last(without), openPages, last(with))
	}
	of := ratios(with, without)
	b.print("\n| POST /send, %d clients | no page open | %d open | ratio | |", pagesClients, openPages)
	b.print("| --- | ---: | ---: | ---: | --- |")
	b.print("| a second | %.0f | %.0f | %s | %s |", median(without), median(with), spread(of), atLeast(of, pagesGoal))
	return nil
}

// openEvents opens the stream of that many pages and reads what comes.
func openEvents(ctx context.Context, url string, n int) (closeAll func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	client := &http.Client{Transport: &http.Transport{MaxIdleConns: n}}
	for range n {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/events", nil)
		if err != nil {
			cancel()
			return nil, err
		}
		response, err := client.Do(request)
		if err != nil {
			cancel()
			return nil, err
		}
		if response.StatusCode != http.StatusOK {
			cancel()
			return nil, fmt.Errorf("GET /events: %s", response.Status)
		}
		go func() {
			defer response.Body.Close()
			_, _ = io.Copy(io.Discard, response.Body)
		}()
	}
	return cancel, nil
}
