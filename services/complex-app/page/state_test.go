package page

import (
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/queue"
)

func TestWhatIsKeptIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // no time passes, so that answers are kept
		s := newState()
		for i := range maxSamples + 500 {
			s.setCounts(queue.Counts{Ready: i}, true, nil)
		}
		require.Len(t, s.depth, maxSamples)
		require.Equal(t, maxSamples+499, *s.depth[maxSamples-1].Ready, "the newest")
		for i := range 100 {
			s.changes([]string{fmt.Sprint(s.name, "-", i)})
		}
		require.LessOrEqual(t, len(s.answers), maxAnswers)
	})
}
