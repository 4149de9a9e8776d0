// Package sent tells the handler of a gRPC call when the call's answer has been sent.
//
// gRPC ends the context of a call when it has queued the encoded answer. The answer stays in memory
// until the client has taken it. A server that limits the memory of answers has to wait for that.
//
// The server's interceptor calls [Watch], and its codec [Answer.Sent]. The handler calls [Then]. All
// functions may be called concurrently.
package sent

import (
	"context"
	"sync"
)

type key struct{}

// Answer is the answer of one call.
type Answer struct {
	mu   sync.Mutex // guards the rest
	sent bool
	then []func()
}

// Watch returns a context for the handler of a call, and the call's answer.
func Watch(ctx context.Context) (context.Context, *Answer) {
	a := &Answer{}
	return context.WithValue(ctx, key{}, a), a
}

// Then calls f, on a goroutine of its own, once the call's answer has been sent. If ctx belongs to no
// watched call, that is when ctx ends. An answer whose connection fails may never count as sent.
func Then(ctx context.Context, f func()) {
	a, ok := ctx.Value(key{}).(*Answer)
	if !ok {
		context.AfterFunc(ctx, f)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sent {
		go f()
		return
	}
	a.then = append(a.then, f)
}

// Awaited reports whether Then was called.
func (a *Answer) Awaited() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.then) > 0
}

// Sent reports that the answer has been sent, or that there will be none. It may be called again.
func (a *Answer) Sent() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sent = true
	for _, f := range a.then {
		go f()
	}
	a.then = nil
}
