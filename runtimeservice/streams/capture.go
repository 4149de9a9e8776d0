package streams

import (
	"bytes"
	"sync"
)

// Capture is a writer that keeps the first bytes and drops the rest. Writing never blocks and never
// fails. It is safe for concurrent use.
type Capture struct {
	mu    sync.Mutex // guards the rest
	buf   bytes.Buffer
	limit int // bytes that may still be kept
}

// NewCapture returns a Capture that keeps limit bytes.
func NewCapture(limit int) *Capture { return &Capture{limit: limit} }

// Write implements io.Writer.
func (c *Capture) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	keep := p[:min(len(p), c.limit)]
	c.limit -= len(keep)
	c.buf.Write(keep)
	return len(p), nil
}

// Take returns the kept bytes. Everything written afterwards is dropped, for example from a process
// that the command left behind.
func (c *Capture) Take() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = 0
	return c.buf.Bytes()
}

// Fit cuts the ends of a and b so that they have at most budget bytes together. The shorter one is cut
// only if both are longer than half of budget.
func Fit(a, b []byte, budget int) ([]byte, []byte) {
	if len(a)+len(b) <= budget {
		return a, b
	}
	half := budget / 2
	switch {
	case len(a) <= half:
		return a, b[:budget-len(a)]
	case len(b) <= half:
		return a[:budget-len(b)], b
	}
	return a[:half], b[:half]
}
