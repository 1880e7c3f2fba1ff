package main

import "time"

// asFound is the consumer that is deployed.
const asFound = "as-deployed"

// variants are what the documentation compares with the consumer as deployed: the
// cells of the matrix for a ScaledJob, and what people do to a Deployment.
func variants(jobs bool) []variant {
	all := []variant{{name: asFound}}
	if !jobs {
		return append(all,
			variant{name: "scale-in-at-once", hasty: true},
			variant{name: "over-amqp", hasty: true, protocol: "amqp"},
			variant{name: "short-grace", hasty: true, protocol: "amqp", grace: 5 * time.Second, deaf: true},
			variant{name: "short-grace-early-ack", hasty: true, protocol: "amqp", grace: 5 * time.Second, deaf: true, early: true},
		)
	}
	for _, strategy := range []variant{
		{name: "default", strategy: "default"},
		{name: "accurate", strategy: "accurate"},
		{name: "accurate+ready", strategy: "accurate", ready: true},
		{name: "eager", strategy: "eager"},
	} {
		for _, acknowledgement := range []string{"late", "early"} {
			for _, protocol := range []string{"amqp", "http"} {
				v := strategy
				v.name += "/" + acknowledgement + "/" + protocol
				v.early = acknowledgement == "early"
				v.protocol = protocol
				all = append(all, v)
			}
		}
	}
	// The tutorial's manifest has no strategy, no protocol and a look every 5 s. Its text
	// does not say when its worker acknowledges: the usual one does before the work.
	tutorial := variant{name: "tutorial", strategy: "default", protocol: "amqp", interval: 5 * time.Second, early: true}
	late := tutorial
	late.name, late.early = "tutorial/late", false
	return append(all, tutorial, late)
}
