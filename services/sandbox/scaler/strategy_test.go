package scaler

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// The expected numbers are those of KEDA 2.21's own functions.
func TestNewJobs(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		strategy                      Strategy
		ready, running, pending, want int64
	}{
		"default: nothing to do":                     {Strategy{}, 0, 0, 0, 0},
		"default: a Job for each message":            {Strategy{}, 5, 0, 0, 5},
		"default: running Jobs count":                {Strategy{}, 5, 3, 0, 2},
		"default: running Jobs starve messages":      {Strategy{}, 5, 5, 0, 0},
		"default: never negative":                    {Strategy{}, 1, 8, 0, 0},
		"default: at most the maximum":               {Strategy{}, 30, 0, 0, 10},
		"default: the maximum counts running ones":   {Strategy{}, 30, 4, 0, 6},
		"accurate: a Job for each message":           {Strategy{Name: "accurate"}, 5, 0, 0, 5},
		"accurate: running Jobs hold other messages": {Strategy{Name: "accurate"}, 5, 5, 0, 5},
		"accurate: pending Jobs take messages":       {Strategy{Name: "accurate"}, 5, 5, 5, 0},
		"accurate: some are pending":                 {Strategy{Name: "accurate"}, 5, 4, 2, 3},
		"accurate: more pending than messages":       {Strategy{Name: "accurate"}, 1, 5, 5, 0},
		"accurate: the maximum is the limit":         {Strategy{Name: "accurate"}, 30, 7, 0, 3},
		"accurate: nothing is left of the maximum":   {Strategy{Name: "accurate"}, 30, 10, 0, 0},
		"accurate: more running than the maximum":    {Strategy{Name: "accurate"}, 30, 12, 0, 0},
		"eager: fills up":                            {Strategy{Name: "eager"}, 2, 0, 0, 2},
		"eager: counts running and pending ones":     {Strategy{Name: "eager"}, 30, 3, 2, 5},
		"eager: full":                                {Strategy{Name: "eager"}, 30, 10, 0, 0},
		"custom: no deduction is the ready messages": {Strategy{Name: "custom"}, 5, 5, 0, 5},
		"custom: a fixed deduction":                  {Strategy{Name: "custom", Deduction: 2}, 5, 0, 0, 3},
		"custom: half of the running ones":           {Strategy{Name: "custom", RunningPercentage: 0.5}, 5, 5, 0, 3},
		"custom: at most the maximum":                {Strategy{Name: "custom", Deduction: -9}, 8, 0, 0, 8},
		"two messages for a Job":                     {Strategy{Target: 2}, 5, 0, 0, 3},
		"half a message for a Job":                   {Strategy{Target: 0.5}, 3, 0, 0, 3},
		"not more than activates":                    {Strategy{Activation: 3}, 3, 0, 0, 0},
		"more than activates":                        {Strategy{Activation: 3}, 4, 0, 0, 4},
		"a minimum without messages":                 {Strategy{MinReplicas: 2}, 0, 0, 0, 2},
		"a minimum is half there":                    {Strategy{MinReplicas: 2}, 7, 1, 0, 1},
		"a minimum is there":                         {Strategy{MinReplicas: 2}, 0, 2, 0, 0},
		"messages beyond the minimum":                {Strategy{MinReplicas: 2}, 7, 2, 0, 7},
		"messages beyond the minimum, accurate":      {Strategy{Name: "accurate", MinReplicas: 2}, 30, 5, 1, 7},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tt.strategy.Target == 0 {
				tt.strategy.Target = 1
			}
			tt.strategy.MaxReplicas = 10
			require.Equal(t, tt.want, tt.strategy.NewJobs(tt.ready, tt.running, tt.pending))
		})
	}
}
