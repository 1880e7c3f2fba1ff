package observe

import "github.com/prometheus/client_golang/prometheus"

// Remembered is how many records a collector knows by name.
func Remembered(c prometheus.Collector) int { return len(c.(*recordCollector).seen) }
