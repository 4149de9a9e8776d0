package streams

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// inMemory is the number of bytes that a Capture keeps in memory.
const inMemory = 64 << 10

// Capture is a writer that keeps the first bytes and drops the rest. It keeps 64 KiB in memory and more
// in an unnamed file, because many commands run at a time. Writing never blocks and never fails. It is
// safe for concurrent use. Close must be called.
type Capture struct {
	dir string // of the file

	mu    sync.Mutex // guards the rest
	buf   []byte
	file  *os.File // nil until buf is full
	filed int      // bytes in the file
	limit int      // bytes that may still be kept
}

// NewCapture returns a Capture that keeps limit bytes, and makes its file in the file system of dir.
func NewCapture(dir string, limit int) *Capture { return &Capture{dir: dir, limit: limit} }

// Write implements io.Writer. It drops what the file cannot take, as what exceeds the limit.
func (c *Capture) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	keep := p[:min(len(p), c.limit)]
	c.limit -= len(keep)
	n := min(len(keep), inMemory-len(c.buf))
	c.buf = append(c.buf, keep[:n]...)
	if n == len(keep) {
		return len(p), nil
	}
	if c.toFile(keep[n:]) != nil {
		c.limit = 0
	}
	return len(p), nil
}

func (c *Capture) toFile(p []byte) error {
	if c.file == nil {
		fd, err := unix.Open(c.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		c.file = os.NewFile(uintptr(fd), c.dir)
	}
	n, err := c.file.Write(p)
	c.filed += n
	return err
}

// Len returns the number of bytes kept so far.
func (c *Capture) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.buf) + c.filed
}

// End returns the number of kept bytes. Everything written afterwards is dropped, for example from a
// process that the command left behind.
func (c *Capture) End() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = 0
	return len(c.buf) + c.filed
}

// Take returns the first n bytes. The caller must have called End, and n must not exceed its result.
// Errors are those of reading the file.
func (c *Capture) Take(n int) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n <= len(c.buf) {
		return c.buf[:n], nil
	}
	out := make([]byte, n)
	copy(out, c.buf)
	_, err := c.file.ReadAt(out[len(c.buf):], 0)
	return out, err
}

// Close drops everything that is written from now on, and removes the file.
func (c *Capture) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = 0
	if c.file != nil {
		_ = c.file.Close()
	}
}

// Fit returns how many of a and b bytes fit into budget. The shorter one is cut only if both are longer
// than half of budget.
func Fit(a, b, budget int) (int, int) {
	half := budget / 2
	switch {
	case a+b <= budget:
		return a, b
	case a <= half:
		return a, budget - a
	case b <= half:
		return budget - b, b
	}
	return half, half
}
