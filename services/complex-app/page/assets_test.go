package page

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheFilesLoadNothingFromElsewhere(t *testing.T) {
	t.Parallel()
	address := regexp.MustCompile(`(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}`)
	forbidden := regexp.MustCompile(`(?i)<style|style=|\son[a-z]+=|<script(?:[^>]*)>[^<]`)
	entries, err := assets.ReadDir("assets")
	require.NoError(t, err)
	for _, entry := range entries {
		content, err := assets.ReadFile("assets/" + entry.Name())
		require.NoError(t, err)
		if !strings.HasPrefix(entry.Name(), "echarts.") && entry.Name() != "icon.svg" {
			require.NotRegexp(t, address, string(content), entry.Name())
		}
		if strings.HasSuffix(entry.Name(), ".html") {
			require.NotRegexp(t, forbidden, string(content), "the policy forbids that")
		}
	}
}
