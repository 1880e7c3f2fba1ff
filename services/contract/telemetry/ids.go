package telemetry

import (
	"context"
	"encoding/binary"
	"math/rand/v2"

	"go.opentelemetry.io/otel/trace"
)

// spanID is the key under which a context has the next span's id.
type spanID struct{}

// ids makes random ids, unless the context has one.
type ids struct{}

func (ids) NewIDs(context.Context) (t trace.TraceID, s trace.SpanID) {
	fill(t[:])
	fill(s[:])
	return t, s
}

func (ids) NewSpanID(ctx context.Context, _ trace.TraceID) (s trace.SpanID) {
	if id, ok := ctx.Value(spanID{}).(trace.SpanID); ok {
		return id
	}
	fill(s[:])
	return s
}

// fill never leaves all bytes zero, which would be no id.
func fill(id []byte) {
	for i := 0; i < len(id); i += 8 {
		binary.NativeEndian.PutUint64(id[i:], rand.Uint64()|1)
	}
}
