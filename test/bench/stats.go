package main

import (
	"fmt"
	"slices"
)

// median of an odd number of values is the one in the middle, of an even number
// the mean of the two there.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return 0
	}
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// ratios divides round by round: what was measured close together.
func ratios(a, b []float64) []float64 {
	r := make([]float64, len(a))
	for i := range a {
		r[i] = a[i] / b[i]
	}
	return r
}

// spread shows a median with the least and the greatest value.
func spread(values []float64) string {
	return fmt.Sprintf("**%.2f** (%.2f–%.2f)", median(values), slices.Min(values), slices.Max(values))
}

// verdict says whether a median reaches its goal.
func verdict(reached bool) string {
	if reached {
		return "reached"
	}
	return "**missed**"
}

func atLeast(values []float64, goal float64) string { return verdict(median(values) >= goal) }
func atMost(values []float64, goal float64) string  { return verdict(median(values) <= goal) }
